"""What one who dispatches knows when it decides: its own tasks, and a report of every edge; many such at once."""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np

from fedkd.planning.learning.edge_cluster import Slot

Array = np.ndarray

NEVER_S = 1e9  # of an edge that does not answer: finite, so that sums and products stay numbers


@dataclass(frozen=True)
class Situation:
    """R dispatchers, each with up to N tasks of its own to place on B edges; all arrays by dispatcher.

    `mask`, `work`, `transfer_s` (R, N): a task, its work, and its way to an edge and back where `distance` (R, B) is
    1; `home` (R,): where they arrived. `queue` (R, B): work that waits at each edge, as far as is known; `speed`
    (R, B): work a second, 0 for an edge that does not answer; `miss` (R, N, B): work that fetching a missing model
    costs, None where nothing is missing. `turn`: decisions made before; `load` (R,): work that arrives over work that
    can be done, as measured so far; `period_s`: until there is a newer report; `peers`: how many dispatchers decide
    on the same report.
    """

    mask: Array
    work: Array
    transfer_s: Array
    distance: Array
    home: Array
    queue: Array
    speed: Array
    rng: np.random.Generator
    miss: Array | None = None
    turn: int = 0
    load: Array = field(default_factory=lambda: np.array(np.nan))
    period_s: float = 1.0
    peers: int = 1

    @property
    def up(self) -> Array:
        """Whether an edge answers (R, B); all of them where none does, for a task must go somewhere."""
        up = self.speed > 0
        return up | ~up.any(axis=1, keepdims=True)

    @property
    def pace_s(self) -> Array:
        """Seconds a unit of work (R, B), beyond all others for an edge that does not answer."""
        return np.where(self.speed > 0, 1 / np.maximum(self.speed, 1 / NEVER_S), NEVER_S)

    @property
    def wait_s(self) -> Array:
        """Delay (R, B) that the reported queues mean for whoever comes next."""
        return np.where(self.speed > 0, self.queue * self.pace_s, NEVER_S)

    def own_s(self) -> Array:
        """Delay (R, N, B) of a task at an edge with nothing before it."""
        work = self.work[..., None] if self.miss is None else self.work[..., None] + self.miss
        return work * self.pace_s[:, None, :] + self.transfer_s[..., None] * self.distance[:, None, :]


def situation(
    slot: Slot, backlog: Array, rows: slice, rng: np.random.Generator, load: Array | None = None
) -> Situation:
    """Base stations `rows` of a slot's S episodes as R = S x rows dispatchers; `backlog` (S, B) is what they see."""
    episodes, edges = backlog.shape
    tasks = [each[:, rows].reshape(-1, slot.mask.shape[2]) for each in (slot.mask, slot.work, slot.transfer_s)]
    stations = np.arange(edges)[rows]
    home = np.tile(stations, episodes)
    miss = None
    if slot.miss_s:
        model = slot.model[:, rows].reshape(tasks[0].shape)
        miss = ~slot.cached.T[model] * (slot.miss_s * slot.capacity) * tasks[0][..., None]
    measured = np.full(len(home), np.nan) if load is None else load[:, rows].ravel()
    return Situation(
        *tasks,
        (np.arange(edges) != home[:, None]).astype(float),
        home,
        np.repeat(backlog, len(stations), axis=0),
        np.repeat(slot.speed, len(stations), axis=0),
        rng,
        miss,
        slot.t,
        measured,
        slot.slot_s,
        edges,
    )
