"""Exact answers to OQC's P1: a multiple-choice knapsack, by dynamic programming or by HiGHS' MILP solver."""

from __future__ import annotations

import numpy as np

from fedkd.planning.offload_problem import OffloadProblem, OffloadSolution
from fedkd.planning.system import PlanningError

MOST_STATES = 400_000_000  # users x budget that the table of choices may hold
MOST_OPTIONS = 200_000


def solve_dp(problem: OffloadProblem) -> OffloadSolution:
    """The optimum by dynamic programming over the edge's budget, O(N · S_e · S_1) time and O(N · S_e) bytes.

    Raises PlanningError where that is too much.
    """
    device, edge = problem.costs("device"), problem.costs("edge")
    kept, kept_steps = device.min(axis=0), device.argmin(axis=0)
    most = len(edge) - 1
    budget = min(problem.edge_budget_steps, problem.users * most)
    if problem.users * (budget + 1) > MOST_STATES:
        raise PlanningError(
            f"users={problem.users} with edge_budget_steps={problem.edge_budget_steps} is too large for method dp; "
            "give method dual"
        )
    best = np.zeros(budget + 1)  # least cost of the users so far with at most so many edge steps
    choices = np.zeros((problem.users, budget + 1), dtype=np.int16 if most < 2**15 else np.int32)  # -1: on the device
    for n in range(problem.users):
        found = best + kept[n]
        choice = choices[n]
        choice[:] = -1
        for steps in np.flatnonzero(np.isfinite(edge[:, n])):
            if steps > budget:
                break
            offered = best[: budget + 1 - steps] + edge[steps, n]
            better = offered < found[steps:]
            found[steps:][better] = offered[better]
            choice[steps:][better] = steps
        best = found
    at_edge, steps_of = np.zeros(problem.users, dtype=bool), np.zeros(problem.users, dtype=np.int64)
    left = budget
    for n in range(problem.users - 1, -1, -1):
        chosen = int(choices[n, left])
        at_edge[n] = chosen >= 0
        steps_of[n] = chosen if chosen >= 0 else kept_steps[n]
        left -= max(chosen, 0)
    objective = problem.objective(at_edge, steps_of)
    return OffloadSolution(problem, at_edge, steps_of, objective, objective, "dp")


def solve_milp(problem: OffloadProblem, relative_gap: float = 1e-9) -> OffloadSolution:
    """The optimum by HiGHS through scipy: one binary a user and choice, one budget row.

    `lower_bound` is the solver's own. Raises PlanningError where there are too many choices or it fails.
    """
    from scipy.optimize import Bounds, LinearConstraint, milp
    from scipy.sparse import csr_array

    device, edge = problem.costs("device"), problem.costs("edge")
    kept_steps = device.argmin(axis=0)
    costs = np.vstack([device.min(axis=0), edge]).T  # (N, 1 + S_1 + 1): on the device, then 0, 1, ... at the edge
    weights = np.concatenate([[0], np.arange(len(edge))])
    user, option = np.nonzero(np.isfinite(costs))
    if user.size > MOST_OPTIONS:
        raise PlanningError(f"users={problem.users} is {user.size} choices, too many for method milp; give method dual")
    columns = np.arange(user.size)
    one_each = csr_array((np.ones(user.size), (user, columns)), shape=(problem.users, user.size))
    in_budget = csr_array(weights[option][None, :].astype(float))
    found = milp(
        costs[user, option],
        integrality=np.ones(user.size),
        bounds=Bounds(0, 1),
        constraints=[LinearConstraint(one_each, 1, 1), LinearConstraint(in_budget, -np.inf, problem.edge_budget_steps)],
        options={"mip_rel_gap": relative_gap},
    )
    if found.x is None:
        raise PlanningError(f"method milp found no answer: {found.message}; give method dual")
    chosen = np.flatnonzero(found.x > 0.5)
    at_edge, steps_of = np.zeros(problem.users, dtype=bool), np.zeros(problem.users, dtype=np.int64)
    at_edge[user[chosen]] = option[chosen] > 0
    steps_of[user[chosen]] = np.where(option[chosen] > 0, option[chosen] - 1, kept_steps[user[chosen]])
    objective = problem.objective(at_edge, steps_of)
    bound = objective if found.mip_dual_bound is None else min(objective, float(found.mip_dual_bound))
    return OffloadSolution(problem, at_edge, steps_of, objective, bound, "milp")
