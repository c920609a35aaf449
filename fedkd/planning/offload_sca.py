"""OQC's own answer to P1: successive convex approximation by KKT conditions (Algorithms 1-3), and its baseline."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from fedkd.planning.offload_problem import Floats, Ints, OffloadProblem, OffloadSolution
from fedkd.planning.system import PlanningError

PENALTY = 1e5  # τ (OQC section IV-A)
EDGE_OF_START = 1e-9  # a binary a is absorbing: u or v would be 0
STARTS = ("half", "random")
NEWTON, HALVINGS = 12, 60


@dataclass(frozen=True)
class _Relaxed:
    """P1 with 0 <= a <= 1 and real s; costs shifted by w2, because the surrogate of Eq. 10 needs R > 0."""

    problem: OffloadProblem
    lowest_a: Floats
    highest_a: Floats

    def cost(self, side: str, steps: Floats) -> tuple[Floats, Floats, Floats]:
        """(R + w2, its first, its second derivative) at `steps`, each (N,)."""
        p = self.problem
        slope = p.slope(side)
        error = p.cost_weight * p.error_weight * np.exp(-p.error_decay * steps)
        lost = p.utility_weight * np.exp(-p.utility_growth * steps)
        first = slope - p.error_decay * error - p.utility_growth * lost
        second = p.error_decay**2 * error + p.utility_growth**2 * lost
        return slope * steps + error + lost + 1e-12, first, second


@dataclass(frozen=True)
class _Surrogate:
    """The sub-problem P2 around one point: u, v, z of Eqs. 10-11 and the penalty's slope of Eq. 14, each (N,)."""

    u: Floats
    v: Floats
    z: Floats
    penalty_slope: Floats


def solve_sca(
    problem: OffloadProblem,
    *,
    start: str = "half",
    seed: int = 1,
    inner: int = 100,
    outer: int = 20,
    tolerance: float = 1e-6,
) -> OffloadSolution:
    """A feasible choice by OQC Algorithm 3; it stops short of the optimum and proves nothing.

    `start`: every a = 1/2, or a uniform in 0..1 from `seed`. At 1/2 the penalty has no slope, so that the first
    sub-problem is solved freely; from any other start it rounds a at once. s is rounded down at the end.
    """
    if start not in STARTS:
        raise PlanningError(f"start={start!r} is not known; give {' or '.join(STARTS)}")
    if inner < 1 or outer < 1:
        raise PlanningError(f"inner={inner} and outer={outer} must be 1 or more")
    users = problem.users
    device_most, edge_most, least = (
        np.broadcast_to(np.asarray(getattr(problem, name), dtype=float), (users,))
        for name in ("device_most_steps", "edge_most_steps", "least_steps")
    )
    relaxed = _Relaxed(problem, (device_most < least).astype(float), (edge_most >= least).astype(float))
    a = np.full(users, 0.5) if start == "half" else np.random.default_rng(seed).uniform(size=users)
    a = np.clip(a, relaxed.lowest_a, relaxed.highest_a)
    s = np.minimum((1 - a) * device_most + a * edge_most, problem.edge_budget_steps / max(a.sum(), 1e-9))
    for _ in range(outer):  # Algorithm 3
        a_i, s_i = a, s
        delta = 0.0
        for _ in range(inner):  # Algorithm 1
            inside, steps = np.clip(a, EDGE_OF_START, 1 - EDGE_OF_START), np.maximum(s, 1e-6)
            surrogate = _Surrogate(
                u=(1 - inside) / (2 * relaxed.cost("device", steps)[0]),
                v=inside / (2 * relaxed.cost("edge", steps)[0]),
                z=inside / (2 * steps),
                penalty_slope=PENALTY * (2 * a_i - 1),
            )
            a_k, s_k, delta = _solve_kkt(relaxed, surrogate, (least, device_most, edge_most), s, delta)
            moved = max(np.abs(a_k - a).max(), np.abs(s_k - s).max())
            a, s = a_k, s_k
            if moved < tolerance:
                break
        if max(np.abs(a - a_i).max(), np.abs(s - s_i).max()) < tolerance:
            break
    at_edge, steps = _rounded(problem, a > 0.5, s)
    return OffloadSolution(problem, at_edge, steps, problem.objective(at_edge, steps), None, f"sca from {start}")


def solve_random(problem: OffloadProblem, seed: int = 1) -> OffloadSolution:
    """OQC's baseline: offload at random, then steps at random within the limits and the budget (section IV-B)."""
    draws = np.random.default_rng(seed)
    at_edge = draws.uniform(size=problem.users) < 0.5
    most = np.where(at_edge, problem.edge_most_steps, problem.device_most_steps)
    drawn = draws.uniform(size=problem.users) * (most + 1 - problem.least_steps) + problem.least_steps
    over = float(drawn[at_edge].sum()) / max(problem.edge_budget_steps, 1e-9)
    drawn[at_edge] /= max(1.0, over)
    at_edge, steps = _rounded(problem, at_edge, drawn)
    return OffloadSolution(problem, at_edge, steps, problem.objective(at_edge, steps), None, "random")


def _solve_kkt(
    relaxed: _Relaxed, surrogate: _Surrogate, limits: tuple[Floats, Floats, Floats], s: Floats, guess: float
) -> tuple[Floats, Floats, float]:
    """(a, s, δ) that solve P2 (Algorithm 2): δ by bracketing Eq. 16b, a in closed form and s by Newton at each δ."""
    budget = relaxed.problem.edge_budget_steps

    def at(delta: float) -> tuple[Floats, Floats, float]:
        a, steps = _given_price(relaxed, surrogate, limits, s, delta)
        return a, steps, float((a * a / (4 * surrogate.z) + steps * steps * surrogate.z).sum())

    a, steps, used = at(0.0)
    if used <= budget:
        return a, steps, 0.0
    low, high = 0.0, max(guess, 1e-4)
    low_excess, (a, steps, used) = used - budget, at(high)
    while used > budget:
        if high > 1e12:
            return a, steps, high  # fewer steps than the least are not to be had: rounding repairs it
        low, low_excess, high = high, used - budget, 4 * high
        a, steps, used = at(high)
    high_excess = used - budget
    for k in range(HALVINGS):
        if high_excess > -1e-7 * max(budget, 1) or high - low <= 1e-13 * high:
            break
        # regula falsi, with a plain halving every third time against slow ends
        share = 0.5 if k % 3 == 2 else low_excess / (low_excess - high_excess)
        delta = low + min(max(share, 0.01), 0.99) * (high - low)
        found = at(delta)
        excess = found[2] - budget
        if excess > 0:
            low, low_excess = delta, excess
        else:
            high, high_excess, (a, steps, _) = delta, excess, found
    return a, steps, high


def _given_price(
    relaxed: _Relaxed, surrogate: _Surrogate, limits: tuple[Floats, Floats, Floats], s: Floats, delta: float
) -> tuple[Floats, Floats]:
    """(a, s) at the budget's multiplier δ: Eqs. 18a and 18b, and both along Eq. 16c where that binds (ζ > 0)."""
    least, device_most, edge_most = limits
    u, v, z = surrogate.u, surrogate.v, surrogate.z
    weight = 1 / (2 * u) + 1 / (2 * v) + delta / (2 * z)
    pull = 1 / (2 * u) + surrogate.penalty_slope
    a = np.clip(pull / weight, relaxed.lowest_a, relaxed.highest_a)

    def slopes(steps: Floats) -> tuple[Floats, Floats]:
        """First and second derivative of P2's Lagrangian in s."""
        (r0, d0, h0), (r1, d1, h1) = relaxed.cost("device", steps), relaxed.cost("edge", steps)
        first = 2 * u * r0 * d0 + 2 * v * r1 * d1 + 2 * delta * z * steps
        return first, 2 * u * (d0 * d0 + r0 * h0) + 2 * v * (d1 * d1 + r1 * h1) + 2 * delta * z

    most = np.maximum(device_most, edge_most)
    steps = _root(slopes, least, most, np.clip(s, least, most))
    bound = steps > (1 - a) * device_most + a * edge_most
    if bound.any():
        rise = edge_most - device_most

        def along(share: Floats) -> tuple[Floats, Floats]:
            first, second = slopes(device_most + rise * share)
            return weight * share - pull + rise * first, weight + rise * rise * second

        share = _root(along, relaxed.lowest_a, relaxed.highest_a, a)
        a = np.where(bound, share, a)
        steps = np.where(bound, device_most + rise * share, steps)
    return a, steps


def _root(slopes: Callable[[Floats], tuple[Floats, Floats]], low: Floats, high: Floats, start: Floats) -> Floats:
    """Where an increasing function crosses 0 in [low, high], else the nearer end: Newton kept inside a bracket."""
    low, high, x = low.copy(), high.copy(), start
    for _ in range(NEWTON):
        value, slope = slopes(x)
        low, high = np.where(value < 0, x, low), np.where(value >= 0, x, high)
        following = x - value / np.maximum(slope, 1e-300)
        following = np.where((following < low) | (following > high), (low + high) / 2, following)
        if np.abs(following - x).max() < 1e-12:
            return following
        x = following
    return x


def _rounded(problem: OffloadProblem, at_edge: NDArray[np.bool_], s: Floats) -> tuple[NDArray[np.bool_], Ints]:
    """Whole steps within every limit: s rounded down; while the budget is passed, users go back to their device."""
    users = (problem.users,)
    least, device_most, edge_most = (
        np.broadcast_to(np.asarray(getattr(problem, name)), users)
        for name in ("least_steps", "device_most_steps", "edge_most_steps")
    )
    at_edge = (at_edge | (device_most < least)) & (edge_most >= least)
    steps = np.floor(s + 1e-6).astype(np.int64)
    forced = device_most < least
    excess = int(least[at_edge].sum()) - problem.edge_budget_steps
    if excess > 0:
        back = np.flatnonzero(at_edge & ~forced)
        back = back[np.argsort(s[back], kind="stable")]
        enough = int(np.searchsorted(np.cumsum(least[back]), excess)) + 1
        at_edge[back[:enough]] = False
        steps[back[:enough]] = device_most[back[:enough]]
    steps = np.clip(steps, least, np.where(at_edge, edge_most, device_most))
    while (excess := int(steps[at_edge].sum()) - problem.edge_budget_steps) > 0:
        spare = np.flatnonzero(at_edge & (steps > least))
        steps[spare[np.argsort(-steps[spare], kind="stable")[:excess]]] -= 1
    return at_edge, steps
