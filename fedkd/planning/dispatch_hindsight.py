"""What nobody can know in time: the best rule in hindsight, and a delay that no schedule goes below."""

from __future__ import annotations

from collections.abc import Iterable
from itertools import product

import numpy as np

from fedkd.planning.cluster import Arrivals
from fedkd.planning.dispatch_episodes import Outcome, run
from fedkd.planning.dispatch_overload import overloaded
from fedkd.planning.dispatch_situation import Situation

Array = np.ndarray

BEYOND_S = (5.0, 12.0, 18.0, 25.0)  # backlog left at the end
STEEP = (0.6, 1.0, 1.4)  # by how much of the time that is left the ceiling is higher


def hindsight(arrivals: Arrivals, information: str = "in-slot", grid: Iterable[tuple[float, float]] = ()) -> Outcome:
    """For every episode the best of several ceilings that fall as its end comes near: the end is known, and the result.

    A search, not an optimum. `grid`: pairs of (steepness, backlog in s at the end), instead of the usual 12.
    """
    slots, slot_s = arrivals.cluster.setting.steps_run, arrivals.cluster.setting.slot_s
    best: list[Array] = []
    for steep, beyond_s in grid or product(STEEP, BEYOND_S):

        def rule(now: Situation, steep: float = steep, beyond_s: float = beyond_s) -> Array:
            left_s = (slots - now.turn) * slot_s
            return overloaded(now, lambda mean_s: np.full_like(mean_s, steep * left_s + beyond_s))

        found = run(arrivals, rule, information).delays_s
        best = [min(pair, key=np.mean) for pair in zip(best or found, found, strict=True)]
    return Outcome(best)


def lower_bound_s(arrivals: Arrivals) -> Array:
    """Mean delay (S,) of one edge as fast as all together that always does the shortest remaining work.

    No schedule of the cluster does better: whatever it does in a moment, the pooled edge can do too, and for one
    machine that may interrupt its work the shortest remaining first has the least mean delay. Ways between edges,
    missing models and failures cost nothing here.
    """
    speed, slot_s = float(arrivals.cluster.speed.sum()), arrivals.cluster.setting.slot_s
    means = []
    for mask, work in zip(arrivals.mask, arrivals.work, strict=True):
        left, total_s = np.zeros(0), 0.0
        for t in range(len(mask)):
            left = np.sort(np.concatenate((left, work[t][mask[t]])), kind="stable")
            ends = np.cumsum(left)
            done = int(np.searchsorted(ends, speed * slot_s, side="right"))
            total_s += float(ends[:done].sum()) / speed + (len(left) - done) * slot_s
            if done < len(left):
                left[done] = ends[done] - speed * slot_s
            left = left[done:]
        total_s += float(np.cumsum(left).sum()) / speed
        means.append(total_s / mask.sum())
    return np.array(means)
