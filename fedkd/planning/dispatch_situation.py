"""What one who dispatches knows when it decides: its own tasks, and a report of every edge; many such at once."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

import numpy as np

Array = np.ndarray

NEVER_S = 1e9  # of an edge that does not answer: finite, so that sums and products stay numbers


@dataclass(frozen=True)
class Situation:
    """R dispatchers, each with up to N tasks of its own to place on B edges; all arrays by dispatcher.

    `mask`, `work`, `transfer_s` (R, N): a task, its work, and its way to an edge and back where `distance` (R, B) is
    1; `home` (R,): where they arrived. `queue` (R, B): work that waits at each edge, as far as is known; `speed`
    (R, B): work a second, 0 for an edge that does not answer; `miss` (R, N, B): work that fetching a missing model
    costs, None where nothing is missing.

    `turn`: decisions made before. `rate`, `count` (R,): own work and own tasks in a usual period of `period_s`,
    after which there is a newer report; `recent` (R, K): sizes of own recent tasks, ascending, filled up with inf.
    Other dispatchers decide on the same report: the tasks of `unseen` (R,) of them stand before one's own, those of
    `later` (R,) behind, and those of `seen` (R,) are in `queue` already.
    """

    mask: Array
    work: Array
    transfer_s: Array
    distance: Array
    home: Array
    queue: Array
    speed: Array
    rng: np.random.Generator
    miss: Array | None
    turn: int
    period_s: float
    rate: Array
    count: Array
    recent: Array
    unseen: Array
    later: Array
    seen: Array

    @cached_property
    def up(self) -> Array:
        """Whether an edge answers (R, B); all of them where none does, for a task must go somewhere."""
        up = self.speed > 0
        return up | ~up.any(axis=1, keepdims=True)

    @cached_property
    def pace_s(self) -> Array:
        """Seconds a unit of work (R, B), beyond all others for an edge that does not answer."""
        return np.where(self.speed > 0, 1 / np.maximum(self.speed, 1 / NEVER_S), NEVER_S)

    @cached_property
    def wait_s(self) -> Array:
        """Delay (R, B) that the reported queues mean for whoever comes next."""
        return np.where(self.speed > 0, self.queue * self.pace_s, NEVER_S)

    def own_s(self) -> Array:
        """Delay (R, N, B) of a task at an edge with nothing before it."""
        work = self.work[..., None] if self.miss is None else self.work[..., None] + self.miss
        return work * self.pace_s[:, None, :] + self.transfer_s[..., None] * self.distance[:, None, :]

    @cached_property
    def speeds(self) -> Array:
        """Work a second (R,) that all edges together can do."""
        return self.speed.sum(axis=1)

    @cached_property
    def load(self) -> Array:
        """Work (R,) that usually arrives everywhere over work that can be done."""
        peers = 1 + self.unseen + self.later + self.seen
        return self.rate * peers / np.maximum(self.speeds * self.period_s, 1e-12)

    @cached_property
    def by_work(self) -> Array:
        """Places (R, N) of the tasks, the largest first."""
        return np.argsort(-np.where(self.mask, self.work, -1.0), axis=1, kind="stable")

    @cached_property
    def span_s(self) -> Array:
        """Seconds (R,) to plan for: until the next report, or what an edge needs for two usual tasks."""
        task = self.rate / np.maximum(self.count, 1e-12)
        edges = np.maximum((self.speed > 0).sum(axis=1), 1)
        return np.maximum(self.period_s, 2 * task * edges / np.maximum(self.speeds, 1e-12))

    @cached_property
    def usual(self) -> Array:
        """Work (R,) that comes to all dispatchers within the span, as a rule."""
        return self.rate * ((self.unseen + self.later) * self.span_s + self.span_s) / self.period_s

    def rank(self) -> Array:
        """Each task's place (R, N) in 0..1 by size: the share of all work that smaller ones hold.

        Tasks of one size hold one stretch of it, in which each is drawn a place.
        """
        known = np.isfinite(self.recent)
        size = np.where(known, self.recent, 0.0)
        top = 1.0 + max(float(size.max()), float(self.work.max()))
        rows = np.arange(len(size))[:, None]
        flat = (np.minimum(self.recent, top) + 2 * top * rows).ravel()
        held = np.concatenate((np.zeros((len(size), 1)), np.cumsum(size, axis=1)), axis=1)
        held /= np.maximum(held[:, -1:], 1e-12)
        below, above = (
            np.clip(np.searchsorted(flat, self.work * factor + 2 * top * rows) - rows * size.shape[1], 0, size.shape[1])
            for factor in (1 - 1e-9, 1 + 1e-9)
        )
        low, high = held[rows, below], held[rows, above]
        return low + (high - low) * self.rng.random(low.shape)
