"""Whole episodes of a cluster under one rule, with either kind of information, all seeds at once."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from fedkd.planning.cluster import Arrivals
from fedkd.planning.dispatch_past import Past
from fedkd.planning.dispatch_rules import Rule
from fedkd.planning.learning.edge_cluster import EdgeCluster, Slot
from fedkd.planning.system import PlanningError

Array = np.ndarray

INFORMATION = {
    "slot-start": "queues at the slot's start and the dispatcher's own arrivals: what the paper's agents see",
    "in-slot": "also what other base stations sent earlier in this slot: what the paper's Opt-TS sees",
}


@dataclass(frozen=True)
class Outcome:
    """Delays of S episodes, each (S,) in s: mean and percentiles over an episode's tasks; `delays_s` of all tasks."""

    delays_s: list[Array]

    @property
    def mean_s(self) -> Array:
        """(S,)."""
        return np.array([each.mean() for each in self.delays_s])

    def percentile_s(self, percent: float) -> Array:
        """(S,)."""
        return np.array([np.percentile(each, percent) for each in self.delays_s])


def decide(slot: Slot, past: Past, rule: Rule, information: str, rng: np.random.Generator) -> Array:
    """One slot's decisions (S, B, N). In-slot: base stations in turn, each seeing what those before it sent.

    `past` has seen the slot. Raises PlanningError for an `information` that is not known.
    """
    if information not in INFORMATION:
        raise PlanningError(f"information={information!r} is not known; give {' or '.join(INFORMATION)}")
    edges = slot.mask.shape[1]
    if information == "slot-start":
        now = past.situation(slot, slot.queue, slice(0, edges), rng, in_slot=False)
        return rule(now).reshape(slot.mask.shape)
    edge, backlog = np.zeros(slot.mask.shape, int), slot.queue.copy()
    rows = np.arange(len(backlog))[:, None]
    for b in range(edges):
        edge[:, b] = rule(past.situation(slot, backlog, slice(b, b + 1), rng, in_slot=True))
        np.add.at(backlog, (rows, edge[:, b]), slot.load(edge)[:, b] * slot.mask[:, b])
    return edge


def run(arrivals: Arrivals, rule: Rule, information: str = "slot-start", seed: int = 0) -> Outcome:
    """All slots of all episodes under one rule; `seed` is of rules that draw."""
    world, rng = EdgeCluster(arrivals), np.random.default_rng(seed)
    past = Past(len(arrivals.seeds), world.setting.edges)
    while not world.over:
        past.see(world.slot)
        world.step(decide(world.slot, past, rule, information, rng))
    return Outcome(world.delays_s())
