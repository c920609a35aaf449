"""Limits on denoising that nobody can meet, and what would do."""

from __future__ import annotations

import numpy as np

from fedkd.planning.denoising_problem import TOLERANCE, Array, DenoisingProblem
from fedkd.planning.rounding import above, below
from fedkd.planning.system import PlanningError


def check_reach(problem: DenoisingProblem) -> None:
    """Raise PlanningError for a limit that no user could meet, had it the whole budget; say what would do."""
    most_device = int(min(problem.device_steps.max(), problem.most_steps))
    most_edge = min(problem.edge_steps, problem.most_steps)
    steps = np.minimum(problem.device_steps + most_edge, problem.most_steps)
    best = problem.quality[np.arange(problem.users)[:, None], :, : int(steps.max()) + 1]
    known = np.arange(best.shape[-1]) <= steps[:, None, None, None]
    highest = np.where(known, best, -np.inf).max(axis=(1, 2, 3))
    if (highest < problem.quality_floor - TOLERANCE).all():
        nearest = int((problem.quality_floor - highest).argmin())
        raise PlanningError(
            f"quality_floor is above what any user can reach with {problem.edge_steps} edge steps; nearest is "
            f"{problem.name(nearest)} with {problem.quality_floor[nearest]:.4g}: give at most "
            f"{below(float(highest[nearest]))}, more steps, or less compression"
        )
    edge, device = np.arange(min(most_edge, 1) + 1)[:, None], np.arange(most_device + 1)[None]
    possible = (edge + device >= 1) & (edge >= problem.least_edge_steps)
    up, down = problem.up_bytes.min(axis=1)[:, None, None], problem.down_bytes(edge, device)[None]
    delay = (
        problem.extraction_s[:, None, None]
        + edge * problem.edge_step_s
        + device * problem.device_step_s[:, None, None]
        + 8 * (edge > 0) * up / problem.up_bps[:, None, None]
        + 8 * down / problem.down_bps[:, None, None]
    )
    allowed = possible & (device <= problem.device_steps[:, None, None])
    fastest = float(np.where(allowed, delay, np.inf).min())
    if problem.delay_limit_s + TOLERANCE < fastest < np.inf:
        raise PlanningError(
            f"delay_limit_s={problem.delay_limit_s:g} is less than any picture takes; the least that would do is "
            f"{above(fastest)}"
        )


def no_room(problem: DenoisingProblem, possible: Array) -> PlanningError:
    """What to raise where the edge's budget cannot give everyone a picture; `possible` (K, E+1): who can have what."""
    stuck = np.flatnonzero(~possible.any(axis=1))
    if stuck.size and problem.edge_steps == 0:
        return PlanningError(
            f"edge_steps=0, and {problem.name(int(stuck[0]))} cannot draw alone; give at least {stuck.size}"
        )
    least = possible.argmax(axis=1).sum()
    return PlanningError(
        f"edge_steps={problem.edge_steps} cannot give each of {problem.users} users a picture; "
        f"the least that would do is {least}"
    )
