"""Simple rules for which edge serves a task: one function each, from a situation to an edge (R, N) for every task."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from fedkd.planning.dispatch_situation import NEVER_S, Situation

Array = np.ndarray
Rule = Callable[[Situation], Array]
GOLDEN = (5**0.5 - 1) / 2  # turns that fill 0..1 evenly


def local(now: Situation) -> Array:
    """Every task stays where it arrived."""
    return np.broadcast_to(now.home[:, None], now.mask.shape)


def uniform(now: Situation) -> Array:
    """Any edge that answers, each as likely as the other."""
    return _drawn(now, now.up.astype(float))


def capacity_proportional(now: Situation) -> Array:
    """Any edge, as likely as it is fast."""
    return _drawn(now, np.where(now.up, now.speed, 0.0))


def join_shortest_queue(now: Situation) -> Array:
    """The shortest queue in seconds by the last report, the dispatcher's own earlier tasks counted."""
    return _task_by_task(now, np.zeros((*now.mask.shape, 1)), now.wait_s)


def greedy(now: Situation) -> Array:
    """The least delay of the task itself, task by task, its own earlier ones counted.

    With in-slot information this is LAD-TS's Opt-TS: a greedy oracle for one's own delay.
    """
    return _task_by_task(now, now.own_s(), now.wait_s)


def _task_by_task(now: Situation, cost_s: Array, wait_s: Array) -> Array:
    """Each task where `wait_s` (R, B) and `cost_s` (R, N, B) are least, what was placed before it added to the wait."""
    rows, edge = np.arange(len(now.mask)), np.zeros(now.mask.shape, int)
    wait_s, pace_s = wait_s.copy(), now.pace_s
    for n in range(now.mask.shape[1]):
        chosen = (wait_s + cost_s[:, n]).argmin(axis=1)
        edge[:, n] = chosen
        brought = now.work[:, n] if now.miss is None else now.work[:, n] + now.miss[rows, n, chosen]
        wait_s[rows, chosen] += brought * pace_s[rows, chosen] * now.mask[:, n]
    return edge


def weighted_round_robin(now: Situation) -> Array:
    """Edges in turn, a fast one more often: each task where turns taken over speed are least; queues do not matter."""
    steps = np.where(now.up, np.maximum(now.speed, 1e-9), 0.0)
    bounds = np.cumsum(steps, axis=1) / steps.sum(axis=1, keepdims=True)
    turn = now.rng.random((len(now.mask), 1)) + np.cumsum(now.mask, axis=1) * GOLDEN
    return (np.mod(turn, 1.0)[..., None] >= bounds[:, None, :-1]).sum(axis=2)


def least_own_work(now: Situation) -> Array:
    """Each task, the largest first, where the dispatcher has sent least for the edge's speed; no report needed."""
    steps = np.where(now.up, np.maximum(now.speed, 1e-9), 0.0)
    work = now.work * now.mask
    usual = work.sum(axis=1, keepdims=True) / np.maximum(now.mask.sum(axis=1, keepdims=True), 1)
    due = steps / steps.sum(axis=1, keepdims=True) * work.sum(axis=1, keepdims=True)
    due = np.where(now.up, due + (now.rng.random(steps.shape) - 0.5) * usual, -NEVER_S)
    rows, edge = np.arange(len(work)), np.zeros(work.shape, int)
    order = np.argsort(-work, axis=1, kind="stable")
    for n in order.T:
        edge[rows, n] = chosen = due.argmax(axis=1)
        due[rows, chosen] -= work[rows, n]
    return edge


def power_of_two(now: Situation) -> Array:
    """Two edges drawn as likely as they are fast, and of those the one that would be done first by the report."""
    weight = np.where(now.up, np.maximum(now.speed, 1e-9), 0.0)
    pair = np.stack((_drawn(now, weight), _drawn(now, weight)))
    end_s = now.wait_s[:, None, :] + now.own_s()
    rows, tasks = np.arange(len(now.mask))[:, None], np.arange(now.mask.shape[1])
    first, second = (end_s[rows, tasks, each] for each in pair)
    return np.where(first <= second, *pair)


def by_size(now: Situation) -> Array:
    """SITA-E: a stretch of sizes for every edge, the largest for the fastest, each with work in proportion to speed."""
    order = np.argsort(np.where(now.up, now.speed, -1.0), axis=1, kind="stable")
    speed = np.take_along_axis(np.where(now.up, np.maximum(now.speed, 1e-9), 0.0), order, axis=1)
    bounds = np.cumsum(speed, axis=1) / speed.sum(axis=1, keepdims=True)
    stretch = (now.rank()[..., None] >= bounds[:, None, :-1]).sum(axis=2)
    return np.take_along_axis(order, stretch, axis=1)


def _drawn(now: Situation, weight: Array) -> Array:
    """Edges drawn with chances in proportion to `weight` (R, B)."""
    bounds = np.cumsum(np.where(weight.any(axis=1, keepdims=True), weight, 1.0), axis=1)
    drawn = now.rng.random(now.mask.shape) * bounds[:, -1:]
    return (drawn[..., None] >= bounds[:, None, :]).sum(axis=2)
