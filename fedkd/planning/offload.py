"""Who goes to the edge, and with how many steps (OQC's P1): exact, or with a proof of how far from exact."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, fields, replace
from typing import Any

import numpy as np

from fedkd.planning.offload_dual import solve_dual
from fedkd.planning.offload_exact import solve_dp, solve_milp
from fedkd.planning.offload_problem import FIELDS, OffloadProblem, OffloadSolution, oqc_problem
from fedkd.planning.offload_sca import solve_random, solve_sca
from fedkd.planning.plan import Plan
from fedkd.planning.system import PlanningError

__all__ = [
    "FIELDS",
    "METHODS",
    "OffloadProblem",
    "OffloadRequest",
    "OffloadSolution",
    "OffloadSystem",
    "front",
    "oqc_problem",
    "plan",
    "solve",
    "steps_given",
]

SMALL_ENOUGH_FOR_DP = 50_000_000  # users x budget: below a few seconds

METHODS: dict[str, Callable[[OffloadProblem, int], OffloadSolution]] = {
    "dual": lambda problem, seed: solve_dual(problem),
    "dp": lambda problem, seed: solve_dp(problem),
    "milp": lambda problem, seed: solve_milp(problem),
    "sca": lambda problem, seed: solve_sca(problem),
    "sca-random": lambda problem, seed: solve_sca(problem, start="random", seed=seed),
    "random": lambda problem, seed: solve_random(problem, seed),
}


@dataclass(frozen=True)
class OffloadRequest:
    """One user's picture and device, in the units of `OffloadProblem`."""

    error_decay: float
    utility_growth: float
    device_step_s: float = 1 / 500
    device_hz: float = 1.5e9
    device_power: float = 1e-29
    device_most_steps: int = 10
    least_steps: int = 1


@dataclass(frozen=True)
class OffloadSystem:
    """The edge with its budget of steps for all users, what counts (OQC Eq. 8), and the `method` of `solve`."""

    edge_budget_steps: int
    edge: str = "edge"
    edge_step_s: float = 1 / 1000
    edge_hz: float = 10e9
    edge_power: float = 1e-29
    edge_most_steps: int = 20
    time_weight: float = 1 / 3
    error_weight: float = 1 / 3
    energy_weight: float = 1 / 3
    cost_weight: float = 0.3
    utility_weight: float = 0.7
    method: str = "auto"


def plan(requests: Sequence[OffloadRequest], system: OffloadSystem) -> list[Plan]:
    """One plan a request, in their order; PlanningError for no request, or one that cannot be."""
    names = [each.name for each in fields(OffloadRequest)]
    columns: dict[str, Any] = {name: np.array([getattr(one, name) for one in requests]) for name in names}
    shared = {each.name: getattr(system, each.name) for each in fields(OffloadSystem) if each.name in FIELDS}
    return solve(OffloadProblem(**columns, **shared), system.method).plans(system.edge)


def solve(problem: OffloadProblem, method: str = "auto", seed: int = 1) -> OffloadSolution:
    """The best choice for everybody under the edge's budget of steps, with its proof.

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
    return [solve(replace(problem, edge_budget_steps=budget)) for budget in budgets]


def steps_given(solution: OffloadSolution) -> OffloadSolution:
    """The best steps for those whom another method sent to the edge: what its choice of users alone loses."""
    problem, least = solution.problem, np.asarray(solution.problem.least_steps)
    if np.any(least < 1):
        raise PlanningError("least_steps=0 lets anybody stay away; give 1 or more to keep a choice of users")
    edge_most = np.where(solution.at_edge, problem.edge_most_steps, 0)
    device_most = np.where(solution.at_edge, 0, problem.device_most_steps)
    found = solve(replace(problem, edge_most_steps=edge_most, device_most_steps=device_most))
    return replace(found, problem=problem, lower_bound=None, dual_bound=None, method=f"{solution.method}, best steps")


def _widest(problem: OffloadProblem) -> int:
    return int(np.max(np.asarray(problem.edge_most_steps)))
