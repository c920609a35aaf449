"""What base stations remember of their own arrivals, and the situations that they decide in."""

from __future__ import annotations

import numpy as np

from fedkd.planning.dispatch_situation import Situation
from fedkd.planning.learning.edge_cluster import Slot

Array = np.ndarray

RECENT = 256  # sizes that a base station remembers


class Past:
    """Own arrivals of all base stations of S episodes, up to the slot that was seen last."""

    def __init__(self, episodes: int, edges: int) -> None:
        self.work = np.zeros((episodes, edges))
        self.tasks = np.zeros((episodes, edges), int)
        self.sizes = np.full((episodes * edges, RECENT), np.inf)
        self.slots = 0

    def see(self, slot: Slot) -> None:
        """Remember what arrived in a slot."""
        row, column = np.nonzero(slot.mask.reshape(len(self.sizes), -1))
        place = (self.tasks.ravel()[row] + column) % RECENT
        self.sizes[row, place] = slot.work[slot.mask]
        self.work += slot.work.sum(axis=2)
        self.tasks += slot.mask.sum(axis=2)
        self.slots += 1

    def situation(self, slot: Slot, backlog: Array, rows: slice, rng: np.random.Generator, in_slot: bool) -> Situation:
        """Base stations `rows` of all episodes as R = S x rows dispatchers that see `backlog` (S, B)."""
        episodes, edges = backlog.shape
        mask, work, transfer_s = (
            each[:, rows].reshape(-1, slot.mask.shape[2]) for each in (slot.mask, slot.work, slot.transfer_s)
        )
        stations = np.arange(edges)[rows]
        home = np.tile(stations, episodes)
        miss = None
        if slot.miss_s:
            model = slot.model[:, rows].reshape(mask.shape)
            miss = ~slot.cached.T[model] * (slot.miss_s * slot.capacity) * mask[..., None]
        return Situation(
            mask=mask,
            work=work,
            transfer_s=transfer_s,
            distance=(np.arange(edges) != home[:, None]).astype(float),
            home=home,
            queue=np.repeat(backlog, len(stations), axis=0),
            speed=np.repeat(slot.speed, len(stations), axis=0),
            rng=rng,
            miss=miss,
            turn=slot.t,
            period_s=slot.slot_s,
            rate=(self.work[:, rows] / self.slots).ravel(),
            count=(self.tasks[:, rows] / self.slots).ravel(),
            recent=np.sort(self.sizes.reshape(episodes, edges, -1)[:, rows].reshape(len(home), -1), axis=1),
            unseen=np.zeros(len(home)) if in_slot else home.astype(float),
            later=edges - 1.0 - home,
            seen=home.astype(float) if in_slot else np.zeros(len(home)),
        )
