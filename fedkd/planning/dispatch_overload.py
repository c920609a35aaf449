"""More work than edges can do: most stay near empty for small tasks, few take the largest, up to a ceiling."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from fedkd.planning.dispatch_sharing import shared_out
from fedkd.planning.dispatch_situation import Situation

Array = np.ndarray
Ceiling = Callable[[Array], Array]  # mean backlog (R,) in s -> backlog (R,) in s that an edge may reach

HEADROOM = 0.35  # work an edge is given beyond what it can do in a period: less leaves it idle when few tasks come
RELIEF = 1.08  # least ceiling over the mean backlog, so that there is room for all that comes
SAME_S = 2.0  # backlogs that differ by less count as equal


def overloaded(now: Situation, ceiling: Ceiling) -> Array:
    """An edge (R, N) for every task, for the least mean delay under a ceiling on each edge's backlog.

    The mean counts tasks, not work, and the work that waits is the same whoever waits: so let it be few large tasks.
    The fullest edges are kept at the ceiling (one at a time is filled up to it) with the largest tasks, the very
    largest at the fullest; the others get the smaller ones, as much as they can do, and stay near empty.
    """
    few, many, kept_small = _rooms(now, ceiling)
    small = now.rank() < kept_small[:, None]
    return _place(now, small, many, few)


def _rooms(now: Situation, ceiling: Ceiling) -> tuple[Array, Array, Array]:
    """Work (R, B) for the few full edges, and for the many others; the share (R,) of work that goes to the latter."""
    speed, queue = now.speed, np.where(now.speed > 0, now.queue, 0.0)
    coming, span = now.usual - now.rate + now.work.sum(axis=1), now.span_s[:, None]
    mean_s = (queue.sum(axis=1) + coming) / np.maximum(now.speeds, 1e-12)
    most_s = np.maximum(ceiling(mean_s), RELIEF * mean_s)[:, None]
    backlog_s = np.where(speed > 0, now.wait_s, -1.0)
    order = np.lexsort((speed, -np.round(backlog_s / SAME_S)), axis=1)
    rows = np.arange(len(order))[:, None]
    below = np.maximum(speed * span * (1 + HEADROOM) - queue, 0.0)[rows, order]
    above = np.maximum(most_s * speed - queue, 0.0)[rows, order]
    left = coming[:, None] + np.cumsum(below, axis=1) - below.sum(axis=1, keepdims=True)  # with edges 0..j full
    full = np.cumsum(above, axis=1)
    rest = np.concatenate(((coming - below.sum(axis=1))[:, None], left), axis=1)
    enough = np.concatenate((np.zeros_like(coming)[:, None], full), axis=1) >= rest
    enough[:, -1] = True
    edges_full = enough.argmax(axis=1)[:, None]
    excess = rest[rows, edges_full]
    at_top = np.arange(speed.shape[1]) < edges_full
    few_sorted = np.clip(excess - (full - above), 0.0, above) * at_top
    few, many = np.zeros_like(speed), np.zeros_like(speed)
    few[rows, order] = few_sorted
    many[rows, order] = below * ~at_top
    share = np.where(excess[:, 0] > 0, many.sum(axis=1) / np.maximum(coming, 1e-12), 1.0)
    return few, many, share


def _place(now: Situation, small: Array, many: Array, few: Array) -> Array:
    """The full edges stand in line by backlog, the fullest for the largest; the others in any order."""
    many, few = _instead(_instead(many, few), now.speed), _instead(_instead(few, many), now.speed)
    anyhow = now.rng.random(now.speed.shape).argsort(axis=1)
    by_backlog = np.argsort(-now.wait_s, axis=1, kind="stable")
    return np.where(small, shared_out(now, small, many, anyhow), shared_out(now, ~small, few, by_backlog))


def _instead(rooms: Array, others: Array) -> Array:
    """Rooms (R, B), or the others where a dispatcher has none."""
    return np.where(rooms.any(axis=1, keepdims=True), rooms, others)
