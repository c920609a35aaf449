"""What one more task would have cost everybody, at every edge of every slot: the social reward, in hindsight."""

from __future__ import annotations

import numpy as np

Array = np.ndarray
LEVELS = 17  # of work that is carried from slot to slot


def social_costs_s(
    sizes: Array, queues: Array, sent: Array, received: Array, speed: Array, slot_s: float = 1.0
) -> Array:
    """Delay (S, T, W, B) in s, its own and what it imposes, of one more task of `sizes` (W,) Gcycles at an edge.

    `queues` (S, T+1, B), `sent` (work) and `received` (tasks) (S, T, B) of an episode that is over, `speed` (B,).
    The task stands in the middle of its slot's line. Later tasks wait longer for as much of it as the edge has
    not caught up with in its idle time: M_t(c) = received_t c / f + M_{t+1}(max(c - idle_t, 0)).
    """
    episodes, slots, edges = sent.shape
    idle = np.maximum(speed * slot_s - queues[:, :-1] - sent, 0.0)
    carried = np.linspace(0.0, float(sizes.max()), LEVELS)
    imposed = np.zeros((episodes, edges, LEVELS))  # M_{t+1} on the levels of c
    costs = np.empty((episodes, slots, len(sizes), edges))
    for t in range(slots - 1, -1, -1):
        left = np.maximum(sizes - idle[:, t, :, None], 0.0)  # (S, B, W)
        later = _between(imposed, left / carried[1])
        own = (queues[:, t] + sent[:, t] / 2)[..., None] + sizes
        behind = received[:, t, :, None] / 2 * sizes
        costs[:, t] = ((own + behind) / speed[:, None] + later).transpose(0, 2, 1)
        following = _between(imposed, np.maximum(carried - idle[:, t, :, None], 0.0) / carried[1])
        imposed = received[:, t, :, None] * carried / speed[:, None] + following
    return costs


def _between(values: Array, place: Array) -> Array:
    """`values` (S, B, L) at fractional places (S, B, W) of the last axis, by straight lines."""
    low = np.minimum(place.astype(int), LEVELS - 2)
    part = place - low
    at = np.take_along_axis(values, low, axis=2)
    return at + part * (np.take_along_axis(values, low + 1, axis=2) - at)
