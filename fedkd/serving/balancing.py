"""How an edge is chosen among candidates: the planner's dispatch rules, and two that every load balancer knows."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from fedkd.planning.dispatch import SCHEDULERS, DispatchRequest, DispatchSystem, EdgeState, plan
from fedkd.recipe import nearest
from fedkd.serving.peers import Peer

DEFAULT_RULE = "social"


@dataclass(frozen=True)
class Candidate:
    """An edge that can draw a request of `flop`; `peer` is None for this edge itself.

    `backlog_flop` is what it has in hand by now, as far as its report of `age_s` ago and what was sent since tell;
    `flops_per_s` its speed on this model. It has to fetch the model first where `miss_s` is not 0.
    """

    url: str
    peer: Peer | None
    flop: float
    flops_per_s: float
    backlog_flop: float
    age_s: float
    requests: int
    miss_s: float = 0.0


@dataclass(frozen=True)
class Decision:
    """Candidates for one request for `model`, and what else a rule may go by; `turn` counts decisions.

    `load` is the work that clients bring over what all edges can do, NaN where not measured; `recent` are the FLOPs
    of requests that came of late.
    """

    candidates: tuple[Candidate, ...]
    here: str
    model: str
    load: float
    period_s: float
    turn: int
    recent: tuple[float, ...] = ()


Rule = Callable[[Decision], Candidate]


def round_robin(decision: Decision) -> Candidate:
    """The edges that have the model, by turns."""
    by_name = sorted(_holders(decision), key=lambda each: each.url)
    return by_name[decision.turn % len(by_name)]


def least_connections(decision: Decision) -> Candidate:
    """Of the edges that have the model, the one with the fewest requests in hand; by turns among equals."""
    holders = _holders(decision)
    first = decision.turn % len(holders)
    return min([*holders[first:], *holders[:first]], key=lambda each: each.requests)


def _holders(decision: Decision) -> list[Candidate]:
    return [each for each in decision.candidates if not each.miss_s] or list(decision.candidates)


def planned(scheduler: str) -> Rule:
    """A scheduler of `fedkd.planning.dispatch` as a rule."""

    def rule(decision: Decision) -> Candidate:
        held = frozenset({decision.model})
        edges = tuple(
            EdgeState(
                name=each.url,
                speed=each.flops_per_s,
                # the scheduler takes off what an edge has done since its report, which is taken off already
                backlog=each.backlog_flop + each.flops_per_s * each.age_s,
                age_s=each.age_s,
                cached=frozenset() if each.miss_s else held,
                miss_s=each.miss_s,
            )
            for each in decision.candidates
        )
        here = decision.here if any(each.name == decision.here for each in edges) else ""
        system = DispatchSystem(
            edges, here, scheduler, turn=decision.turn, load=decision.load, period_s=decision.period_s
        )
        (made,) = plan([DispatchRequest(decision.candidates[0].flop, decision.model)], system)
        return next(each for each in decision.candidates if each.url == made.edge)

    return rule


BALANCERS: dict[str, Rule] = {"round-robin": round_robin, "least-connections": least_connections}
if "social" not in SCHEDULERS:
    BALANCERS["social"] = planned("greedy")
RULES = (*SCHEDULERS, *(name for name in BALANCERS if name not in SCHEDULERS))


def rule_of(name: str) -> Rule:
    """A rule by name; ValueError that names the nearest."""
    if name in SCHEDULERS:
        return planned(name)
    if name not in BALANCERS:
        raise ValueError(f"dispatch={name!r} is not known; {nearest(name, RULES)}")
    return BALANCERS[name]
