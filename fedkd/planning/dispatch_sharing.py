"""Own tasks shared out over edges, each edge its share of the work to within a task."""

from __future__ import annotations

import numpy as np

from fedkd.planning.dispatch_situation import Situation

Array = np.ndarray


def shared_out(now: Situation, chosen: Array, rooms: Array, line: Array) -> Array:
    """An edge (R, N) for the `chosen` (R, N) own tasks, in proportion to `rooms` (R, B).

    The tasks lie end to end, the largest first, beside the edges' stretches in the order of `line` (R, B), and each
    goes where a point in it falls; with one draw for all points of a dispatcher, its shares are right on average and
    never off by more than a task. A task whose edge lacks its model goes to one that holds it, if there is room.
    """
    order = now.by_work
    rows = np.arange(len(order))[:, None]
    work = (now.work * (now.mask & chosen))[rows, order]
    ends = np.cumsum(work, axis=1)
    at = (ends - work * now.rng.random((len(work), 1))) / np.maximum(ends[:, -1:], 1e-12)
    bounds = np.cumsum(rooms[rows, line], axis=1)
    bounds /= np.maximum(bounds[:, -1:], 1e-12)
    stretch = (at[..., None] > bounds[:, None, :-1]).sum(axis=2)
    found = line[rows, stretch]
    if now.miss is not None:
        found = _where_held(now, order, found, rooms)
    edge = np.zeros_like(found)
    edge[rows, order] = found
    return edge


def _where_held(now: Situation, order: Array, edge: Array, rooms: Array) -> Array:
    """The same edges, or where one lacks the model another that holds it, as likely as it has room."""
    assert now.miss is not None
    miss = np.take_along_axis(now.miss, order[..., None], axis=1)
    bounds = np.cumsum(np.where(miss > 0, 0.0, rooms[:, None, :]), axis=2)
    drawn = (now.rng.random(edge.shape) * bounds[..., -1])[..., None]
    other = np.minimum((drawn >= bounds).sum(axis=2), rooms.shape[1] - 1)
    lacks = np.take_along_axis(miss, edge[..., None], axis=2)[..., 0] > 0
    return np.where(lacks & (bounds[..., -1] > 0), other, edge)
