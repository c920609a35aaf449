"""What an edge knows of others grows old, counts what was sent since, and an answer's events are told once."""

from __future__ import annotations

import asyncio
import json
from typing import Any

import pytest

from fedkd.serving.arrivals import Arrivals, submitted
from fedkd.serving.asked import IMAGES, RESUME, SESSIONS, asked_of
from fedkd.serving.balancing import RULES, Candidate, Decision, rule_of
from fedkd.serving.outgoing import Events, Outgoing
from fedkd.serving.peers import LOST_AFTER, LOST_S, EdgeReport, ModelReport, Peer
from fedkd.serving.streaming import event_bytes
from fedkd.serving.workload import Rate

MODEL = ModelReport(digest="d", row_flop=10.0, row_s=0.5, num_inference_steps=12, guidance_scale=2.0)


def report(sequence: int = 1, edge: str = "e", left_s: float = 0.0, requests: int = 0) -> EdgeReport:
    return EdgeReport(edge=edge, sequence=sequence, ready=True, left_s=[left_s], requests=requests, models={"m": MODEL})


class Clock:
    """A clock that stands until it is moved."""

    now = 100.0

    def __call__(self) -> float:
        return self.now


def test_a_peer_is_healthy_from_its_first_answer_until_it_misses_one() -> None:
    clock = Clock()
    peer = Peer("http://x", clock)
    assert not peer.healthy and peer.age_s == float("inf")
    peer.heard(report(), 100.0)
    assert peer.healthy and peer.age_s == 0
    peer.doubt()
    assert not peer.healthy and not peer.lost.is_set()
    for _ in range(LOST_AFTER):
        peer.missed()
    assert not peer.lost.is_set()  # it may only be busy
    clock.now += LOST_S
    peer.missed()
    assert peer.lost.is_set()
    peer.heard(report(2), 100.0)
    assert peer.healthy and not peer.lost.is_set()


def test_what_was_sent_after_a_report_is_added_until_the_next() -> None:
    clock = Clock()
    peer = Peer("http://x", clock)
    peer.heard(report(requests=2), 100.0)
    clock.now = 101.0
    with peer.holding(7.0):
        assert (peer.unreported_flops, peer.requests, peer.age_s) == ([7.0], 3, 1.0)
        peer.heard(report(2, requests=3), 102.0)
        assert (peer.unreported_flops, peer.requests) == ([], 3)
    with peer.holding(5.0):
        pass
    assert not peer.unreported_flops


def test_a_report_that_was_overtaken_changes_nothing_but_that_of_a_restarted_edge_counts() -> None:
    peer = Peer("http://x", Clock())
    peer.heard(report(5, left_s=5.0), 100.0)
    peer.heard(report(4, left_s=4.0), 99.0)
    assert peer.report is not None and peer.report.backlog_s == 5.0
    peer.heard(report(1, edge="anew"), 99.5)
    assert peer.report.backlog_s == 0.0


def test_speed_is_what_was_measured() -> None:
    assert report().flops_per_s == 20.0
    unmeasured = MODEL.model_copy(update={"row_s": None})
    assert report().model_copy(update={"models": {"m": unmeasured}}).flops_per_s is None


def test_a_rate_is_right_from_the_start_and_fades() -> None:
    clock = Clock()
    rate = Rate(10.0, clock)
    for _ in range(200):
        clock.now += 0.1
        rate.add(0.3)
    assert rate.per_s == pytest.approx(3.0, rel=0.05)
    clock.now += 100.0
    assert rate.per_s < 0.001


def test_work_counts_as_arriving_until_the_engine_has_it() -> None:
    arrivals = Arrivals()
    with arrivals.expected(3.0):
        assert arrivals.flops == [3.0]
        submitted()
        assert not arrivals.flops
    with arrivals.expected(2.0):
        pass
    assert not arrivals.flops
    submitted()


def test_what_was_left_to_chance_is_drawn_once() -> None:
    asked = asked_of(IMAGES, "", json.dumps({"prompt": "p", "n": 2}).encode())
    assert asked is not None
    first, second = (json.loads(asked.sent("m")) for _ in range(2))
    assert first == second and first["model"] == "m" and isinstance(first["seed"], int)
    assert asked.flop(MODEL) == 2 * 12 * 2 * 10.0
    opened = asked_of(SESSIONS, "", json.dumps({"prompt": "p", "device_steps": 4, "guidance_scale": 1}).encode())
    assert opened is not None and json.loads(opened.sent("m"))["id"] == opened.session
    assert opened.flop(MODEL) == 8 * 10.0
    resumed = asked_of(RESUME, "device_steps=5", b"junk")
    assert resumed is not None and resumed.session in resumed.query and resumed.sent("m") == b"junk"
    assert asked_of(IMAGES, "", b"junk") is None and asked_of(IMAGES, "", b'{"n": 2}') is None


def candidate(url: str, **facts: Any) -> Candidate:
    given = {"flop": 4.0, "flops_per_s": 2.0, "left_flop": (), "age_s": 0.1, "requests": 0, **facts}
    return Candidate(url, None, **given)


def decision(*candidates: Candidate, turn: int = 0) -> Decision:
    return Decision(candidates, candidates[0].url, "m", 0.5, 0.5, turn)


@pytest.mark.parametrize("name", ["social", "greedy"])
def test_the_planners_rules_weigh_queue_speed_and_a_missing_model(name: str) -> None:
    rule = rule_of(name)
    idle, busy = candidate("idle"), candidate("busy", left_flop=(25.0, 25.0))
    assert rule(decision(busy, idle)).url == "idle"
    assert rule(decision(candidate("slow", flops_per_s=0.1), idle)).url == "idle"
    assert rule(decision(candidate("far", miss_s=10.0), idle)).url == "idle"
    assert rule(decision(candidate("far", miss_s=1.0), busy)).url == "far"


def test_the_social_rule_counts_what_a_request_adds_to_those_in_hand() -> None:
    rule = rule_of("social")
    one_large, many_small = candidate("one", left_flop=(20.0,)), candidate("many", left_flop=(3.0,) * 5)
    assert rule(decision(many_small, one_large)).url == "one"  # 4 + 2 x 4 beside 4 + 2 x 15
    assert rule_of("greedy")(decision(many_small, one_large)).url == "many"


def test_load_balancers_go_by_turns_and_by_requests_among_those_that_have_the_model() -> None:
    a, b, far = candidate("a", requests=1), candidate("b", requests=3), candidate("far", miss_s=9.0)
    turns = [rule_of("round-robin")(decision(a, b, far, turn=turn)).url for turn in range(4)]
    assert turns == ["a", "b", "a", "b"]
    assert rule_of("least-connections")(decision(b, a, far, turn=1)).url == "a"
    assert rule_of("round-robin")(decision(far)).url == "far"


def test_an_unknown_rule_names_the_nearest() -> None:
    assert {"social", "round-robin", "least-connections"} <= set(RULES)
    with pytest.raises(ValueError, match="did you mean 'round-robin'"):
        rule_of("round-robbin")


def test_a_stream_that_goes_on_elsewhere_tells_no_event_twice() -> None:
    def event(kind: str, **facts: Any) -> bytes:
        return event_bytes(kind, {"type": kind, **facts})

    events = [event("partial", partial_image_index=n) for n in range(3)] + [event("completed", seed=4)]
    sent: list[Any] = []

    async def send(message: Any) -> None:
        sent.append(message)

    async def tell() -> None:
        out, cut = Outgoing(send), Events()
        await out.stream([(b"content-type", b"text/event-stream")], "http://one")
        for whole in cut.feed(events[0] + events[1] + events[2][:9]):  # here it dies
            await out.event(whole)
        await out.stream([], "http://two")
        again = Events()
        for part in (b"".join(events)[:50], b": still here\n\n" + b"".join(events)[50:]):
            for whole in again.feed(part if part.startswith(b"event") else part.removeprefix(b": still here\n\n")):
                await out.event(whole)
        await out.end()

    asyncio.run(tell())
    assert [message["type"] for message in sent].count("http.response.start") == 1
    assert dict(sent[0]["headers"])[b"x-fedkd-edge"] == b"http://one"
    assert b"".join(message.get("body", b"") for message in sent) == b"".join(events)
    assert sent[-1]["more_body"] is False
