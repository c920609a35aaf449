"""First come, first served at every edge: waiting, delays and next queues of one slot (LAD-TS Eqs. 2-4)."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

Array = np.ndarray


@dataclass(frozen=True)
class Served:
    """One slot's outcome in S episodes; per task (S, B, N), 0 where there is none; per edge (S, B).

    `ahead`: work in front of a task at its edge, queue at slot start included (q_{t-1} + q^bef of Eq. 3);
    `delay_s`: Eq. 2; `own_s`: the part of it that is not waiting; `behind`: tasks sent to the same edge later in the
    slot; `load`: work that a task brings to its edge, a missing model's fetching included; `queue`: Eq. 4;
    `sent`: work, and `received`: tasks, that each edge got in the slot.
    """

    ahead: Array
    delay_s: Array
    own_s: Array
    behind: Array
    load: Array
    queue: Array
    sent: Array
    received: Array


def line_up(mask: Array, load: Array, edge: Array, edges: int) -> tuple[Array, Array, Array, Array]:
    """Who stands before whom: (ahead, behind) per task like `mask` (S, B, N), and (sent, received) per edge (S, B).

    Tasks line up in (base station, n) order at the edge that `edge` (S, B, N) names; `ahead` is work sent to the
    same edge earlier in the slot, `behind` the number of tasks sent there later.
    """
    episodes = mask.shape[0]
    here = np.flatnonzero(mask)
    line = here // (mask.size // episodes) * edges + edge.ravel()[here]
    work = load.ravel()[here]
    kind = np.uint16 if episodes * edges < 2**16 else np.int64  # radix sort for the small kind
    order = np.argsort(line.astype(kind), kind="stable")
    received = np.bincount(line, minlength=episodes * edges)
    starts = np.cumsum(received) - received
    sorted_line = line[order]
    total = np.concatenate(([0.0], np.cumsum(work[order])))
    ahead, behind = np.zeros(mask.size), np.zeros(mask.size, np.int64)
    ahead[here[order]] = total[:-1] - total[starts[sorted_line]]
    behind[here[order]] = (starts + received)[sorted_line] - 1 - np.arange(len(here))
    sent = np.bincount(line, work, minlength=episodes * edges)
    shape = (episodes, edges)
    return ahead.reshape(mask.shape), behind.reshape(mask.shape), sent.reshape(shape), received.reshape(shape)


def serve(
    queue: Array,
    speed: Array,
    mask: Array,
    load: Array,
    edge: Array,
    extra_s: Array,
    slot_s: float = 1.0,
) -> Served:
    """One slot: `queue` (S, B) at its start, `load`, `edge`, `extra_s` (transfer) per task (S, B, N).

    `speed` (S, K, B): of this slot and of those after it; the last one lasts. Where it changes or is 0 (an edge that
    is down keeps its queue), a task ends when the edge has done what stood before it and the task itself.
    """
    before, behind, sent, received = line_up(mask, load, edge, queue.shape[1])
    rows = np.arange(queue.shape[0])[:, None, None]
    ahead = np.where(mask, queue[rows, edge] + before, 0.0)
    now = speed[:, 0]
    if speed.shape[1] == 1:
        pace = now[rows, edge]
        with np.errstate(divide="ignore", invalid="ignore"):
            computing = np.where(mask, load / pace, 0.0)
            busy = np.where(mask, (ahead + load) / pace, 0.0)
    else:
        busy = np.where(mask, _until(ahead + load, speed, rows, edge, slot_s), 0.0)
        computing = np.where(mask, busy - _until(ahead, speed, rows, edge, slot_s), 0.0)
    extra = np.where(mask, extra_s, 0.0)
    after = np.maximum(queue + sent - now * slot_s, 0.0)
    return Served(ahead, busy + extra, computing + extra, behind, np.where(mask, load, 0.0), after, sent, received)


def _until(work: Array, speed: Array, rows: Array, edge: Array, slot_s: float) -> Array:
    """Seconds until an edge whose speed changes from slot to slot has done `work`."""
    left, spent = work.astype(float), np.zeros(work.shape)
    slots = speed.shape[1]
    for k in range(slots):
        pace = speed[:, k][rows, edge]
        with np.errstate(divide="ignore", invalid="ignore"):
            need = np.where(left > 0, left / pace, 0.0)
        done = need if k == slots - 1 else np.minimum(need, slot_s)
        spent += done
        left = np.maximum(left - pace * slot_s, 0.0)
        if k < slots - 1 and not left.any():
            break
    return spent


def imposed_s(t: int, edge: Array, load: Array, behind: Array, queues: Array, received: Array, speed: Array) -> Array:
    """Delay (S, B, N) in s that slot t's tasks impose on later ones: what those would save without each of them.

    `queues` (S, T+1, B) at the starts of all slots and `received` (S, T, B) tasks of an episode that is over;
    `speed` (B,) is constant. Later in the slot everybody saves the task's work; after it, as much of that as
    the queue has not run empty meanwhile: min(load, min of q[t+1..k]).
    """
    rows = np.arange(edge.shape[0])[:, None, None]
    saved, total = load.astype(float), behind * load
    for k in range(t + 1, received.shape[1]):
        saved = np.minimum(saved, queues[:, k][rows, edge])
        if not saved.any():
            break
        total = total + saved * received[:, k][rows, edge]
    return total / speed[edge]
