"""Simple rules for which edge serves a task: one function each, from a situation to an edge (R, N) for every task."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from fedkd.planning.dispatch_situation import Situation

Array = np.ndarray
Rule = Callable[[Situation], Array]


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
    return _task_by_task(now, np.zeros_like(now.own_s()))


def greedy(now: Situation) -> Array:
    """The least delay of the task itself, task by task, its own earlier ones counted.

    With in-slot information this is LAD-TS's Opt-TS: a greedy oracle for one's own delay.
    """
    return _task_by_task(now, now.own_s())


def _task_by_task(now: Situation, cost_s: Array) -> Array:
    """Each task where its wait and `cost_s` (R, N, B) are least, with what was placed before it in the queue."""
    rows, edge = np.arange(len(now.mask)), np.zeros(now.mask.shape, int)
    wait_s, pace_s = now.wait_s, now.pace_s
    for n in range(now.mask.shape[1]):
        chosen = (wait_s + cost_s[:, n]).argmin(axis=1)
        edge[:, n] = chosen
        brought = now.work[:, n] if now.miss is None else now.work[:, n] + now.miss[rows, n, chosen]
        wait_s[rows, chosen] += brought * pace_s[rows, chosen] * now.mask[:, n]
    return edge


def _drawn(now: Situation, weight: Array) -> Array:
    """Edges drawn with chances in proportion to `weight` (R, B)."""
    bounds = np.cumsum(np.where(weight.any(axis=1, keepdims=True), weight, 1.0), axis=1)
    drawn = now.rng.random(now.mask.shape) * bounds[:, -1:]
    return (drawn[..., None] >= bounds[:, None, :]).sum(axis=2)
