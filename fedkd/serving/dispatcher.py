"""Which edge draws a request: the candidates as this edge knows them now, and the planner's choice among them."""

from __future__ import annotations

import math
from collections import Counter, deque
from collections.abc import Collection, Sequence

from fedkd.serving.asked import Asked
from fedkd.serving.balancing import Candidate, Decision, rule_of
from fedkd.serving.models import EdgeModels
from fedkd.serving.peers import EdgeReport, ModelReport, Peer
from fedkd.serving.workload import Workload

CALLS = 2  # a picture's prompt is encoded and its latents decoded, on the engine's time as well
RECENT = 64  # requests whose work is remembered, for rules that go by sizes


class Dispatcher:
    """Chooses among this edge, reached at `here`, and its peers; used on the event loop alone."""

    def __init__(
        self, here: str, models: EdgeModels, workload: Workload, peers: Sequence[Peer], rule: str, period_s: float
    ) -> None:
        self.here, self.models, self.workload, self.peers = here, models, workload, list(peers)
        self.rule, self.period_s = rule_of(rule), period_s
        self._decisions = 0
        self._recent: deque[float] = deque(maxlen=RECENT)

    def model_of(self, asked: Asked) -> str:
        """The model's name: this edge's default where the request has none and names no version."""
        if asked.model or asked.digest:
            return asked.model
        return next(iter(self.models.names()), "")

    def choose(self, asked: Asked, tried: Collection[str] = ()) -> Candidate | None:
        """Who is to draw it, of those that were not `tried`; None when there is nobody."""
        found = [each for each in self.candidates(asked) if each.url not in tried]
        if len(found) < 2:
            return found[0] if found else None
        self._decisions += 1
        return self.rule(
            Decision(
                tuple(found),
                self.here,
                self.model_of(asked),
                self._load(),
                self.period_s,
                self._decisions,
                tuple(self._recent),
            )
        )

    def count(self, asked: Asked) -> None:
        """A client has asked this edge, wherever it is drawn: that is the load that all edges share."""
        facts = next((found for *_, report in self._edges() if (found := self._facts(report, asked))), None)
        if facts is not None:
            flop = asked.flop(facts)
            self.workload.arrived(flop)
            self._recent.append(flop)

    def candidates(self, asked: Asked) -> list[Candidate]:
        """All edges that can draw it with the same result: they serve, or can fetch, the same version of the model."""
        edges = self._edges()
        serving = [(peer, facts) for _, peer, report in edges if (facts := self._facts(report, asked))]
        name = self.model_of(asked)
        if not serving:
            wanted = self._stand_in([report for *_, report in edges])
        elif serving[0][0] is None:
            wanted = serving[0][1]
        else:
            wanted = _most_common([facts for _, facts in serving])
        found = []
        for url, peer, report in edges:
            facts = self._facts(report, asked)
            if facts is not None and facts.digest == wanted.digest:
                found.append(self._candidate(url, peer, report, facts, asked, 0.0))
            elif facts is None and name in report.fetchable:
                unmeasured = wanted.model_copy(update={"row_s": None})
                found.append(self._candidate(url, peer, report, unmeasured, asked, report.fetchable[name]))
        return found

    def holder_of(self, model: str, digest: str) -> Peer | None:
        """A peer that serves a model (or this version of it) which this edge does not."""
        for peer in self.peers:
            if peer.healthy and peer.report is not None:
                for name, facts in peer.report.models.items():
                    if model in ("", name) and digest in ("", facts.digest) and (model or digest):
                        return peer
        return None

    def _facts(self, report: EdgeReport, asked: Asked) -> ModelReport | None:
        name = self.model_of(asked)
        for each, facts in report.models.items():
            if name in ("", each) and asked.digest in ("", facts.digest):
                return facts
        return None

    def _candidate(
        self, url: str, peer: Peer | None, report: EdgeReport, facts: ModelReport, asked: Asked, miss_s: float
    ) -> Candidate:
        speed = facts.row_flop / facts.row_s if facts.row_s else report.flops_per_s or self._usual_speed()
        age_s = peer.age_s if peer else 0.0
        backlog_s = report.backlog_s
        left = max(0.0, backlog_s - age_s) / backlog_s if backlog_s else 0.0  # jobs are served by turns
        left_flop = [each_s * left * speed for each_s in report.left_s] + (peer.unreported_flops if peer else [])
        return Candidate(
            url=url,
            peer=peer,
            flop=asked.flop(facts) + CALLS * asked.pictures * report.call_s * speed,
            flops_per_s=speed,
            left_flop=tuple(left_flop),
            age_s=age_s,
            requests=peer.requests if peer else report.requests,
            miss_s=miss_s,
        )

    def _edges(self) -> list[tuple[str, Peer | None, EdgeReport]]:
        """This edge and its healthy peers, with their reports."""
        own = self.workload.report()
        found: list[tuple[str, Peer | None, EdgeReport]] = [(self.here, None, own)] if own.ready else []
        return found + [(peer.url, peer, peer.report) for peer in self.peers if peer.healthy and peer.report]

    def _usual_speed(self) -> float:
        """What an edge is taken for that has not drawn anything yet: the mean of those that have."""
        known = [speed for *_, report in self._edges() if (speed := report.flops_per_s)]
        return sum(known) / len(known) if known else 1.0

    def _stand_in(self, reports: list[EdgeReport]) -> ModelReport:
        """What a model is taken for that nobody has yet: the mean of the others."""
        known = [facts.row_flop for report in reports for facts in report.models.values()]
        defaults = self.models.defaults
        return ModelReport(
            digest="",
            row_flop=sum(known) / len(known) if known else 1.0,
            num_inference_steps=defaults.num_inference_steps,
            guidance_scale=defaults.guidance_scale,
        )

    def _load(self) -> float:
        """The work that clients bring over what all edges can do; NaN where a speed is not known."""
        reports = [report for *_, report in self._edges()]
        speeds = [report.flops_per_s or math.nan for report in reports]
        return sum(report.arriving_flops_per_s for report in reports) / sum(speeds) if reports else math.nan


def _most_common(facts: list[ModelReport]) -> ModelReport:
    counted = Counter(each.digest for each in facts)
    return max(facts, key=lambda each: (counted[each.digest], each.created))
