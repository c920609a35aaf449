"""Less work than edges can do: one's own delay and what the task costs those behind it."""

from __future__ import annotations

import numpy as np

from fedkd.planning.dispatch_sharing import shared_out
from fedkd.planning.dispatch_situation import Situation

Array = np.ndarray

BEHIND = 2.0  # tasks behind that a task pays for, over those that come later at the mean edge
BEHIND_UNSEEN = 0.3  # the same where others' tasks are not seen: chance blurs what it gains,
LOADED, EASE = 0.85, 0.2  # and queues of chance outweigh it, so that it fades up to this measured load
GUESSES = 24
KNOTS = 32


def light(now: Situation) -> Array:
    """An edge (R, N) for every task: the least own delay + work/speed x tasks behind.

    Fast edges then get the large tasks and the longer queues, and slow ones stay short for small tasks. Where others'
    tasks come between that are not seen, every dispatcher keeps to the shares that this rule comes to on average.
    """
    hidden = now.unseen * now.count >= 1
    if not hidden.any():
        return one_by_one(now)
    by_size = speeds_by_size(now)
    return by_size if hidden.all() else np.where(hidden[:, None], by_size, one_by_one(now))


def one_by_one(now: Situation) -> Array:
    """Task by task, each seeing those before it."""
    rows, edge = np.arange(len(now.mask)), np.zeros(now.mask.shape, int)
    wait_s, own_s, pace_s = now.wait_s, now.own_s(), now.pace_s
    mine = now.mask.sum(axis=1)
    for n in range(now.mask.shape[1]):
        behind = BEHIND * (now.later * now.count + np.maximum(mine - n - 1, 0)) / wait_s.shape[1]
        brought = now.work[:, n, None] if now.miss is None else now.work[:, n, None] + now.miss[:, n]
        cost_s = wait_s + own_s[:, n] + brought * pace_s * behind[:, None]
        chosen = cost_s.argmin(axis=1)
        edge[:, n] = chosen
        wait_s[rows, chosen] += (np.broadcast_to(brought, wait_s.shape) * pace_s)[rows, chosen] * now.mask[:, n]
    return edge


def speeds_by_size(now: Situation) -> Array:
    """Own tasks by size, the largest to the fastest edges, each edge as much work as it should get.

    With m_e the wait in the middle of the period, a task of size w has the least m_e + (1 + K) w / f_e at neighbours
    in speed e, e+1 for the w at which m_{e+1} - m_e = (1 + K) w (1/f_e - 1/f_{e+1}); from the slowest edge's wait
    follow all others, and the work 2 (f m - q) that each gets. It is guessed, and the guess taken that places all.
    """
    rows = np.arange(len(now.mask))[:, None]
    order = np.argsort(now.speed, axis=1, kind="stable")
    speed, queue, pace_s = (each[rows, order] for each in (now.speed, now.queue, now.pace_s))
    peers = 1 + now.unseen + now.later
    coming = np.maximum(now.work.sum(axis=1) + now.rate * (peers - 1), 1e-12)[:, None]
    faded = np.clip((LOADED - now.load) / EASE, 0, 1)[:, None]
    toll = 1 + BEHIND_UNSEEN * faded * (now.count * peers / 2)[:, None] / speed.shape[1]
    tolled = toll * _knots(now.recent)
    most_s = 2 * (queue.sum(axis=1, keepdims=True) + coming) / np.maximum(speed.sum(axis=1, keepdims=True), 1e-12)
    wait_s = most_s * np.linspace(0, 1, GUESSES) ** 2  # (R, guesses)
    slower = np.zeros_like(speed)
    slower[:, :-1] = np.where(speed[:, :-1] > 0, pace_s[:, :-1] - pace_s[:, 1:], 0.0)
    dearer_s = slower.T[..., None] * tolled  # (B, R, knots): what the next edge waits more, by the size at the border
    dearer_s, changes = dearer_s.reshape(len(dearer_s), -1), slower.any(axis=0)
    columns = zip(2 * speed.T[..., None], 2 * queue.T[..., None], dearer_s, changes, strict=True)
    work = np.zeros((speed.shape[1], *wait_s.shape))
    placed, knot, first = np.zeros_like(wait_s), KNOTS / coming, KNOTS * rows
    for mine, (pace, before, more_s, change) in zip(work, columns, strict=True):
        np.multiply(pace, wait_s, out=mine)
        mine -= before
        np.maximum(mine, 0.0, out=mine)
        placed += mine
        if change:
            at = np.minimum(placed * knot, KNOTS - 1).astype(np.intp)
            wait_s += more_s.take(at + first if len(rows) > 1 else at)
    best = np.abs(placed - coming).argmin(axis=1)
    share = work[:, rows[:, 0], best].T + 1e-9 * speed
    rooms = np.zeros_like(share)
    rooms[rows, order] = share
    return shared_out(now, now.mask, rooms, order[:, ::-1])


def _knots(recent: Array) -> Array:
    """Sizes (R, knots): in the middle of each of as many equal shares of the work, by size."""
    size = np.where(np.isfinite(recent), recent, 0.0)
    held = np.cumsum(size, axis=1)
    held /= np.maximum(held[:, -1:], 1e-12)
    rows = np.arange(len(size))[:, None]
    wanted = (np.arange(KNOTS) + 0.5) / KNOTS
    at = np.searchsorted((held + 2 * rows).ravel(), (wanted + 2 * rows).ravel()).reshape(len(size), -1)
    return size[rows, np.minimum(np.maximum(at - rows * size.shape[1], 0), size.shape[1] - 1)]
