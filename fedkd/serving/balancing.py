"""How an edge is chosen: everybody's least delay, the planner's rules, and two that every load balancer knows."""

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

    `left_flop` is what is left of each job in hand, as far as its report of `age_s` ago and what was sent since tell;
    `flops_per_s` its speed on this model. It has to fetch the model first where `miss_s` is not 0.
    """

    url: str
    peer: Peer | None
    flop: float
    flops_per_s: float
    left_flop: tuple[float, ...]
    age_s: float
    requests: int
    miss_s: float = 0.0

    @property
    def backlog_flop(self) -> float:
        """All it has in hand."""
        return sum(self.left_flop)


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


def social(decision: Decision) -> Candidate:
    """The least delay for everybody: a request's own, and what it adds to that of those in hand.

    An edge serves by turns, so that of a job with r left and a new one of w each waits for min(r, w) of the other:
    (w + 2 sum min(r, w)) / speed.
    """

    def cost_s(each: Candidate) -> float:
        shared = sum(min(left, each.flop) for left in each.left_flop)
        return each.miss_s + (each.flop + 2 * shared) / each.flops_per_s

    return min(decision.candidates, key=cost_s)


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
            edges,
            here,
            scheduler,
            turn=decision.turn,
            load=decision.load,
            recent=decision.recent,
            period_s=decision.period_s,
        )
        (made,) = plan([DispatchRequest(decision.candidates[0].flop, decision.model)], system)
        return next(each for each in decision.candidates if each.url == made.edge)

    return rule


RULES: dict[str, Rule] = {
    **{name: planned(name) for name in SCHEDULERS},
    "social": social,  # that of the planner places a slot's tasks at edges that serve one after the other
    "round-robin": round_robin,
    "least-connections": least_connections,
}


def rule_of(name: str) -> Rule:
    """A rule by name; ValueError that names the nearest."""
    if name not in RULES:
        raise ValueError(f"dispatch={name!r} is not known; {nearest(name, list(RULES))}")
    return RULES[name]
