"""Who goes to the edge, and with how many steps (OQC's P1): exact, or with a proof of how far from exact."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace

import numpy as np

from fedkd.planning.offload_dual import solve_dual
from fedkd.planning.offload_exact import solve_dp, solve_milp
from fedkd.planning.offload_problem import FIELDS, OffloadProblem, OffloadSolution, oqc_problem
from fedkd.planning.offload_sca import solve_random, solve_sca
from fedkd.planning.system import PlanningError

__all__ = ["FIELDS", "METHODS", "OffloadProblem", "OffloadSolution", "front", "oqc_problem", "plan", "steps_given"]

SMALL_ENOUGH_FOR_DP = 50_000_000  # users x budget: below a few seconds

METHODS: dict[str, Callable[[OffloadProblem, int], OffloadSolution]] = {
    "dual": lambda problem, seed: solve_dual(problem),
    "dp": lambda problem, seed: solve_dp(problem),
    "milp": lambda problem, seed: solve_milp(problem),
    "sca": lambda problem, seed: solve_sca(problem),
    "sca-random": lambda problem, seed: solve_sca(problem, start="random", seed=seed),
    "random": lambda problem, seed: solve_random(problem, seed),
}


def plan(problem: OffloadProblem, method: str = "auto", seed: int = 1) -> OffloadSolution:
    """The best choice for everybody under the edge's budget of steps; `plans()` of the answer is one Plan a user.

    `auto` takes the dual and its core, which nearly always proves its answer optimal, and the dynamic programme
    where it does not and the problem is small. `dp` and `milp` are exact; `sca` (OQC Algorithms 1-3 from a = 1/2),
    `sca-random` and `random` (from `seed`) are the paper's method and its baseline, without proof.
    Raises PlanningError for a method that is not known, or a problem too large for dp or milp.
    """
    if method == "auto":
        found = solve_dual(problem)
        states = problem.users * (min(problem.edge_budget_steps, problem.users * _widest(problem)) + 1)
        return found if found.gap == 0 or states > SMALL_ENOUGH_FOR_DP else solve_dp(problem)
    if method not in METHODS:
        raise PlanningError(f"method={method!r} is not known; give auto, {', '.join(METHODS)}")
    return METHODS[method](problem, seed)


def front(problem: OffloadProblem, budgets: Sequence[int]) -> list[OffloadSolution]:
    """The best choice at each of the edge's budgets (steps): what more of the edge is worth."""
    return [plan(replace(problem, edge_budget_steps=budget)) for budget in budgets]


def steps_given(solution: OffloadSolution) -> OffloadSolution:
    """The best steps for those whom another method sent to the edge: what its choice of users alone loses."""
    problem, least = solution.problem, np.asarray(solution.problem.least_steps)
    if np.any(least < 1):
        raise PlanningError("least_steps=0 lets anybody stay away; give 1 or more to keep a choice of users")
    edge_most = np.where(solution.at_edge, problem.edge_most_steps, 0)
    device_most = np.where(solution.at_edge, 0, problem.device_most_steps)
    found = plan(replace(problem, edge_most_steps=edge_most, device_most_steps=device_most))
    return replace(found, problem=problem, lower_bound=None, dual_bound=None, method=f"{solution.method}, best steps")


def _widest(problem: OffloadProblem) -> int:
    return int(np.max(np.asarray(problem.edge_most_steps)))
