"""Which edge serves a request (LAD-TS): schedulers by name, for one decision or a batch of them."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from fedkd.planning import dispatch_rules as rules
from fedkd.planning.dispatch_situation import Situation
from fedkd.planning.dispatch_social import social, social_mean
from fedkd.planning.plan import Plan
from fedkd.planning.system import PlanningError

SCHEDULERS: dict[str, rules.Rule] = {
    "local": rules.local,
    "uniform": rules.uniform,
    "capacity-proportional": rules.capacity_proportional,
    "weighted-round-robin": rules.weighted_round_robin,
    "least-own-work": rules.least_own_work,
    "jsq": rules.join_shortest_queue,
    "power-of-two": rules.power_of_two,
    "sita": rules.by_size,
    "greedy": rules.greedy,
    "social": social,
    "social-mean": social_mean,
}
EDGE_ALONE = "edge_first"


@dataclass(frozen=True)
class DispatchRequest:
    """One request: `work` in the unit of the edges' speed (UNet evaluations, cycles), `model` it needs, where it
    arrived (`origin`, '' for the dispatcher's own edge), what it sends and gets; `steps` for its Plan."""

    work: float
    model: str = ""
    origin: str = ""
    data_bytes: float = 0.0
    result_bytes: float = 0.0
    steps: int = 1

    def __post_init__(self) -> None:
        for name in ("work", "data_bytes", "result_bytes"):
            value = getattr(self, name)
            if not 0 <= value < math.inf:
                raise PlanningError(f"{name}={value} must be a number, not negative")


@dataclass(frozen=True)
class EdgeState:
    """The last report of an edge: `speed` (work a second), `backlog` (work that waits or runs), its age.

    Work that the edge did since, `speed x age_s`, is taken from the backlog. `cached` are models it holds; another
    one costs `miss_s` first. `rate_bps` is the link to it. An edge that is not `healthy` gets nothing while another is.
    """

    name: str
    speed: float
    backlog: float = 0.0
    age_s: float = 0.0
    healthy: bool = True
    cached: frozenset[str] = frozenset()
    miss_s: float = 0.0
    rate_bps: float = math.inf

    def __post_init__(self) -> None:
        for name in ("speed", "rate_bps"):
            if not getattr(self, name) > 0:
                raise PlanningError(f"{name}={getattr(self, name)} of edge {self.name} must be positive")
        for name in ("backlog", "age_s", "miss_s"):
            if not 0 <= getattr(self, name) < math.inf:
                raise PlanningError(f"{name}={getattr(self, name)} of edge {self.name} must not be negative")

    @property
    def waiting(self) -> float:
        """Work that is left of the backlog by now."""
        return max(self.backlog - self.speed * self.age_s, 0.0)


@dataclass(frozen=True)
class DispatchSystem:
    """The edges as known at the edge `here` ('' for somebody who is none of them), and how to choose among them.

    `scheduler` is one of `SCHEDULERS`. `turn` counts decisions made before (rules that take turns), `load` is
    work that arrives at all dispatchers over work that can be done, as measured (NaN: not yet), `recent` the work of
    the dispatcher's recent requests, `period_s` how long a report lasts, `peers` how many dispatchers go by the same
    reports (0: as many as edges), `seed` of rules that draw.
    """

    edges: tuple[EdgeState, ...]
    here: str = ""
    scheduler: str = "social"
    turn: int = 0
    load: float = math.nan
    recent: tuple[float, ...] = ()
    period_s: float = 1.0
    peers: int = 0
    seed: int = 0

    def __post_init__(self) -> None:
        names = [edge.name for edge in self.edges]
        if not names:
            raise PlanningError("edges is empty; give at least one edge")
        if len(set(names)) < len(names):
            raise PlanningError(f"edges={names} names an edge twice")
        if self.here and self.here not in names:
            raise PlanningError(f"here={self.here!r} is not among the edges {', '.join(names)}; give one, or ''")
        if self.scheduler not in SCHEDULERS:
            raise PlanningError(f"scheduler={self.scheduler!r} is not known; give {', '.join(SCHEDULERS)}")


def plan(requests: Sequence[DispatchRequest], system: DispatchSystem) -> list[Plan]:
    """One plan a request, in their order: its edge, and the delay that the last reports let expect.

    Requests are placed in the order given, each counted as waiting for those after it. Raises PlanningError for an
    origin that is no edge.
    """
    origins = _origins(requests, system)
    chosen = _chosen(requests, system, origins)
    waiting = {edge.name: edge.waiting for edge in system.edges}
    plans = []
    for request, place, origin in zip(requests, chosen, origins, strict=True):
        edge = system.edges[place]
        missing = bool(request.model) and request.model not in edge.cached
        wait_s = waiting[edge.name] / edge.speed
        delay_s = wait_s + request.work / edge.speed + missing * edge.miss_s
        if place != origin:
            delay_s += 8 * (request.data_bytes + request.result_bytes) / edge.rate_bps
        waiting[edge.name] += request.work + missing * edge.miss_s * edge.speed
        why = (f"{system.scheduler}: {wait_s:.2f} s of work wait at {edge.name}",)
        plans.append(Plan(edge.name, max(request.steps, 1), 0, EDGE_ALONE, reasons=why, delay_s=delay_s))
    return plans


def decide(requests: Sequence[DispatchRequest], system: DispatchSystem) -> list[str]:
    """The edge's name for every request, without what a plan says besides."""
    return [system.edges[place].name for place in _chosen(requests, system, _origins(requests, system))]


def _chosen(requests: Sequence[DispatchRequest], system: DispatchSystem, origins: list[int]) -> list[int]:
    """The place of every request's edge; the requests of one origin are one decision."""
    chosen = np.zeros(len(requests), int)
    for origin in dict.fromkeys(origins):
        mine = [n for n, each in enumerate(origins) if each == origin]
        now = _situation([requests[n] for n in mine], system, origin)
        chosen[mine] = SCHEDULERS[system.scheduler](now)[0]
    return chosen.tolist()


def _origins(requests: Sequence[DispatchRequest], system: DispatchSystem) -> list[int]:
    """The place of the edge where each request arrived."""
    index = {edge.name: place for place, edge in enumerate(system.edges)}
    return [_origin(request, system, index) for request in requests]


def _origin(request: DispatchRequest, system: DispatchSystem, index: dict[str, int]) -> int:
    """The place of a request's edge, -1 for none."""
    name = request.origin or system.here
    if name and name not in index:
        raise PlanningError(f"origin={name!r} is not among the edges {', '.join(index)}")
    return index.get(name, -1)


def _situation(requests: Sequence[DispatchRequest], system: DispatchSystem, origin: int) -> Situation:
    edges = system.edges
    healthy = np.array([edge.healthy for edge in edges])
    speed = np.where(healthy | ~healthy.any(), [edge.speed for edge in edges], 0.0)
    work = np.array([request.work for request in requests])
    models = list(dict.fromkeys(request.model for request in requests))
    miss = None
    if any(models):
        lacking = np.array(
            [[e.miss_s * e.speed * (bool(model) and model not in e.cached) for e in edges] for model in models]
        )
        place = {model: row for row, model in enumerate(models)}
        miss = lacking[None, [place[request.model] for request in requests]] if lacking.any() else None
    recent = np.sort(np.concatenate((np.array(system.recent, float), work)))
    peers = system.peers or len(edges)
    others = np.array([(peers - 1) / 2])  # on average half of them are before, and half behind
    load = 0.0 if math.isnan(system.load) else system.load
    rate = load * speed.sum() * system.period_s / peers
    return Situation(
        mask=np.ones((1, len(requests)), bool),
        work=work[None],
        transfer_s=np.array([[8 * (r.data_bytes + r.result_bytes) for r in requests]]),
        distance=np.array([[(place != origin) / edge.rate_bps for place, edge in enumerate(edges)]]),
        home=np.array([origin if origin >= 0 else system.turn % len(edges)]),
        queue=np.array([[edge.waiting for edge in edges]]),
        speed=speed[None],
        rng=np.random.default_rng([system.seed, system.turn]),
        miss=miss,
        turn=system.turn,
        period_s=system.period_s,
        rate=np.array([rate]),
        count=np.array([rate / max(float(recent.mean()), 1e-12)]),
        recent=recent[None],
        unseen=others,
        later=others,
        seen=np.zeros(1),
    )
