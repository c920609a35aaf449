"""How many steps for everyone, and where: the exact answer to distributed denoising control (DDC problem P2).

Deciding whole pairs (e_k edge steps, l_k device steps) leaves one budget that couples the users, `Σ e_k ≤ C_E`:
a multiple-choice knapsack, which dynamic programming solves exactly (`denoising_exact`). With V > 1 ways to
be conditioned the same program also picks everyone's condition and compression (VCE problem P0, jointly).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np

from fedkd.planning.denoising_exact import knapsack
from fedkd.planning.denoising_problem import (
    OBJECTIVES,
    TOLERANCE,
    Allocation,
    Array,
    DenoisingProblem,
    evaluate,
)
from fedkd.planning.denoising_reach import check_reach, no_room
from fedkd.planning.denoising_requests import DenoisingRequest, DenoisingSystem, from_requests
from fedkd.planning.plan import Plan
from fedkd.planning.system import PlanningError

CHUNK = 1 << 20  # options priced at once
EXACT = 2.0**53  # whole numbers up to here are exact in float64


@dataclass(frozen=True)
class Options:
    """For each user and number of edge steps (K, E+1): the best worth, and which of V·(L+1) gives it."""

    primary: Array
    secondary: Array
    pick: Array
    most_device_steps: int


def solve(problem: DenoisingProblem, objective: str = "satisfied-bytes-utility", *, binary: bool = False) -> Allocation:
    """The best allocation; `binary` lets a user draw at the edge or on the device, never on both.

    Raises PlanningError where the edge's budget cannot give everyone a picture.
    """
    small, original = without_dominated(problem)
    found = options(small, objective, binary=binary)
    edge = knapsack(found.primary, found.secondary, problem.edge_steps)
    if edge is None:
        raise no_room(problem, np.isfinite(found.primary))
    user = np.arange(problem.users)
    variant, device = np.divmod(found.pick[user, edge], found.most_device_steps + 1)
    return evaluate(problem, edge, device, original[user, variant])


def plan(requests: Sequence[DenoisingRequest], system: DenoisingSystem) -> list[Plan]:
    """One plan a request, in their order; PlanningError for no request, or limits that nobody can meet."""
    asked = from_requests(requests, system)
    found, made = allocate(asked.problem, system.objective, edge=system.edge)
    names = asked.names(found.variant)
    return [replace(each, condition=name) for each, name in zip(made, names, strict=True)]


def allocate(
    problem: DenoisingProblem, objective: str = "satisfied-bytes-utility", *, edge: str = "edge"
) -> tuple[Allocation, list[Plan]]:
    """The best allocation, and a plan for every user with its reasons.

    A user whose limits cannot be met gets the best that is left, and the reasons say so. Raises
    PlanningError for a limit that nobody could meet even alone, with the least that would do.
    """
    check_reach(problem)
    found = solve(problem, objective)
    return found, plans(found, edge, objective)


def without_dominated(problem: DenoisingProblem) -> tuple[DenoisingProblem, Array]:
    """The problem without conditions that a smaller one beats at every step, and whose place (K, V') each was.

    No objective can miss them: a dominated condition is worse in quality, bytes and delay alike.
    """
    if problem.variants == 1:
        return problem, np.zeros((problem.users, 1), int)
    kept = [_undominated(*each) for each in zip(problem.quality, problem.up_bytes, strict=True)]
    most = max(len(each) for each in kept)
    original = np.array([each + each[:1] * (most - len(each)) for each in kept])
    user = np.arange(problem.users)[:, None]
    return replace(
        problem, quality=problem.quality[user, original], up_bytes=problem.up_bytes[user, original]
    ), original


def _undominated(quality: Array, up_bytes: Array) -> list[int]:
    kept: list[int] = []
    for variant in np.lexsort((-quality[:, -1], up_bytes)):
        if not (quality[kept] >= quality[variant]).all(axis=1).any():
            kept.append(int(variant))
    return kept


def options(problem: DenoisingProblem, objective: str, *, binary: bool = False) -> Options:
    """g_k(e): for every number of edge steps the best that device steps and condition can make of it."""
    if objective not in OBJECTIVES:
        raise PlanningError(f"objective={objective!r} is not known; give {', '.join(OBJECTIVES)}")
    users, most = problem.users, problem.most_steps
    most_edge = min(problem.edge_steps, most)
    most_device = int(min(problem.device_steps.max(), most))
    # A satisfied user outweighs all bytes of everyone.
    outweigh = users * (problem.up_bytes.max() + max(problem.latents_bytes, problem.image_bytes)) + 1
    if users * outweigh >= EXACT:
        raise PlanningError(f"{users} users with {outweigh:g} bytes in all are too many for an exact plan; group them")
    shape = (users, most_edge + 1)
    primary, secondary, pick = np.empty(shape), np.empty(shape), np.empty(shape, int)
    at_once = max(1, CHUNK // ((most_edge + 1) * (most_device + 1) * problem.variants))
    for start in range(0, users, at_once):
        rows = slice(start, min(start + at_once, users))
        first, second = _price(problem, rows, most_edge, most_device, objective, outweigh, binary)
        best = first.max(axis=2, keepdims=True)
        second[first < best] = -np.inf
        chosen = second.argmax(axis=2)
        pick[rows], primary[rows] = chosen, best[:, :, 0]
        secondary[rows] = np.take_along_axis(second, chosen[:, :, None], axis=2)[:, :, 0]
    return Options(primary, secondary, pick, most_device)


def _price(
    problem: DenoisingProblem,
    rows: slice,
    most_edge: int,
    most_device: int,
    objective: str,
    outweigh: float,
    binary: bool,
) -> tuple[Array, Array]:
    """Primary and secondary worth (k, E+1, V·(L+1)) of every option of the users in `rows`."""
    edge, device = np.arange(most_edge + 1)[:, None], np.arange(most_device + 1)[None]
    steps = edge + device
    possible = (steps >= 1) & (steps <= problem.most_steps) & (edge >= problem.least_edge_steps)
    if binary:
        possible = possible & ((edge == 0) | (device == 0))

    def column(values: Array) -> Array:
        return values[rows, None, None, None]

    # (k, E+1, V, L+1)
    allowed = possible[None, :, None] & (device[None, :, None] <= column(problem.device_steps))
    quality = problem.quality[rows][:, :, np.minimum(steps, problem.most_steps)].transpose(0, 2, 1, 3)
    sends = (edge > 0)[None, :, None]
    up = sends * problem.up_bytes[rows, None, :, None]
    down = problem.down_bytes(edge, device)[None, :, None]
    device_s = device[None, :, None] * column(problem.device_step_s)
    delay = column(problem.extraction_s) + edge[None, :, None] * problem.edge_step_s + device_s
    delay = delay + 8 * up / column(problem.up_bps) + 8 * down / column(problem.down_bps)
    secondary = quality - problem.delay_weight * delay
    floor = column(problem.quality_floor)
    primary = np.zeros_like(quality)
    if objective == "reward":
        secondary -= problem.penalties[2] * np.maximum(0, floor - quality)
        secondary -= problem.penalties[3] * np.maximum(0, delay - problem.delay_limit_s)
    elif objective != "utility":
        satisfied = (quality >= floor - TOLERANCE) & (delay <= problem.delay_limit_s + TOLERANCE)
        primary = satisfied * outweigh if objective == "satisfied-bytes-utility" else satisfied.astype(float)
        if objective == "satisfied-bytes-utility":
            primary = primary - (up + down)
    forbidden = ~np.broadcast_to(allowed, primary.shape)
    primary[forbidden] = secondary[forbidden] = -np.inf
    flat = (quality.shape[0], most_edge + 1, -1)
    return primary.reshape(flat), secondary.reshape(flat)


def plans(found: Allocation, edge: str, objective: str) -> list[Plan]:
    """Every user's plan; the edge goes first (Eqs. 4-5)."""
    problem = found.problem
    made = []
    for user in range(problem.users):
        steps, device = int(found.edge_steps[user] + found.device_steps[user]), int(found.device_steps[user])
        quality, delay = float(found.quality[user]), float(found.delay_s[user])
        moved = found.up_bytes[user] + found.down_bytes[user]
        reasons = [
            f"{problem.name(user)}: {steps - device} steps at the edge and {device} on the device, of "
            f"{problem.edge_steps} and {int(problem.device_steps[user])}: {OBJECTIVES[objective]}",
            f"quality {quality:.3f} after {delay:.3g} s and {moved / 1e3:.3g} kB on the link (estimated)",
        ]
        if quality < problem.quality_floor[user] - TOLERANCE:
            reasons.append(f"the quality asked for, {problem.quality_floor[user]:.3f}, is not reached")
        if delay > problem.delay_limit_s + TOLERANCE:
            reasons.append(f"the delay limit of {problem.delay_limit_s:g} s is not kept")
        made.append(
            Plan(
                edge=edge,
                num_inference_steps=steps,
                device_steps=device,
                order="edge_first",
                reasons=tuple(reasons),
                delay_s=delay,
                quality=quality,
            )
        )
    return made
