"""Who gets into the step engine's next forward, who must wait, and who is sent away."""

from __future__ import annotations

import asyncio
import threading
from itertools import pairwise
from typing import Any

import pytest
import torch

from fedkd.inference.step_engine import Busy, Cancelled, Expired, StepEngine
from tests.inference.pictures import WAIT_S, held, lone, picture, running, together


def test_a_newcomer_is_not_starved_by_a_long_queue(tiny_pipeline: Any) -> None:
    order: list[str] = []
    with running(tiny_pipeline.unet, max_rows=2) as engine:
        with together(engine):
            for seed in range(10):
                engine.submit(
                    "m", picture(tiny_pipeline, seed), owner="greedy", on_step=lambda _: order.append("greedy")
                )
        newcomer = engine.submit("m", picture(tiny_pipeline), owner="new", on_step=lambda _: order.append("new"))
        newcomer.future.result(WAIT_S)
    mine = [place for place, owner in enumerate(order) if owner == "new"]
    assert all(later - earlier <= 2 for earlier, later in pairwise(mine))


def test_owners_take_turns_whatever_each_has_queued(tiny_pipeline: Any) -> None:
    order: list[str] = []
    with running(tiny_pipeline.unet, max_rows=2) as engine:
        with together(engine):
            tickets = [
                engine.submit("m", picture(tiny_pipeline), owner=owner, on_step=lambda _, o=owner: order.append(o))
                for owner, queued in (("a", 4), ("b", 1), ("c", 2))
                for _ in range(queued)
            ]
        for ticket in tickets:
            ticket.future.result(WAIT_S)
    assert order[:12] == ["a", "b", "c"] * 4
    assert order[12:20] == ["a", "c"] * 4


def test_an_owners_jobs_take_turns_so_that_none_waits_for_anothers_last_step(tiny_pipeline: Any) -> None:
    order: list[int] = []
    with running(tiny_pipeline.unet, max_rows=2) as engine:
        with together(engine):
            tickets = [
                engine.submit("m", picture(tiny_pipeline), on_step=lambda _, n=n: order.append(n)) for n in range(3)
            ]
        for ticket in tickets:
            ticket.future.result(WAIT_S)
    assert order == [0, 1, 2] * 4


def test_a_short_deadline_goes_first_but_takes_no_more_than_every_second_forward(tiny_pipeline: Any) -> None:
    order: list[str] = []
    with running(tiny_pipeline.unet, max_rows=2) as engine:
        engine.submit("m", picture(tiny_pipeline)).future.result(WAIT_S)
        engine._forward_s = 3600.0  # so slow that an hour is a short time
        with together(engine):
            tickets = [
                engine.submit(
                    "m",
                    picture(tiny_pipeline),
                    owner=name,
                    deadline_s=3000.0 if name == "hurried" else None,
                    on_step=lambda _, name=name: order.append(name),
                )
                for name in ("a", "b", "c", "hurried")
            ]
        for ticket in tickets:
            ticket.future.result(WAIT_S)
    assert order[0] == "hurried" and order.index("a") == 1


def test_a_cancelled_job_frees_its_rows_between_steps_and_stays_whole(tiny_pipeline: Any) -> None:
    with running(tiny_pipeline.unet, max_rows=4) as engine:
        job = picture(tiny_pipeline, 1)
        with together(engine):
            stays = engine.submit("m", picture(tiny_pipeline))
            leaves = engine.submit("m", job, on_step=lambda job: leaves.cancel() if job.step == 2 else None)
        with pytest.raises(Cancelled, match="at step 2 of 4"):
            leaves.future.result(WAIT_S)
        stays.future.result(WAIT_S)
        seen = engine.stats()
        assert (seen["rows"], seen["forwards"], seen["cancelled"], seen["waiting"]) == (12, 4, 1, 0)
        left = engine.submit("m", job).future.result(WAIT_S)
    assert torch.allclose(left.latents, lone(tiny_pipeline, seed=1), rtol=1e-4, atol=1e-4)


def test_a_job_that_asyncio_no_longer_waits_for_is_cancelled(tiny_pipeline: Any) -> None:
    async def give_up(engine: StepEngine) -> None:
        go, _ = held(engine)
        waiting = asyncio.wrap_future(engine.submit("m", picture(tiny_pipeline)).future)
        call = asyncio.wrap_future(engine.call(never.set))
        await asyncio.sleep(0)
        waiting.cancel(), call.cancel()
        await asyncio.sleep(0)
        go.set()

    never = threading.Event()
    with running(tiny_pipeline.unet) as engine:
        asyncio.run(give_up(engine))
        engine.submit("m", picture(tiny_pipeline)).future.result(WAIT_S)
        assert engine.stats()["cancelled"] == 1 and not never.is_set()


def test_a_job_past_its_deadline_expires_waiting_or_under_way(tiny_pipeline: Any) -> None:
    with running(tiny_pipeline.unet, max_rows=2) as engine:
        go, _ = held(engine)
        late = engine.submit("m", picture(tiny_pipeline), deadline_s=1e-6)
        go.set()
        with pytest.raises(Expired, match="step 0 of 4"):
            late.future.result(WAIT_S)

        under_way = engine.submit(
            "m", picture(tiny_pipeline), on_step=lambda _: setattr(under_way, "deadline", 0.0), deadline_s=WAIT_S
        )
        with pytest.raises(Expired, match="step 1 of 4"):
            under_way.future.result(WAIT_S)
        assert engine.stats()["expired"] == 2
        with pytest.raises(ValueError, match="deadline_s=0"):
            engine.submit("m", picture(tiny_pipeline), deadline_s=0)


def test_a_full_engine_says_when_to_come_back(tiny_pipeline: Any) -> None:
    with running(tiny_pipeline.unet, max_waiting=2) as engine:
        go, _ = held(engine)
        waiting = [engine.submit("m", picture(tiny_pipeline, seed)) for seed in range(2)]
        with pytest.raises(Busy, match="2 requests wait already") as refused:
            engine.submit("m", picture(tiny_pipeline))
        assert 1 <= refused.value.retry_after_s <= 60
        with pytest.raises(Busy):
            engine.call(lambda: None)
        admitted = engine.call(lambda: "decoded", admitted=True)
        assert engine.stats() | {"waiting": 3, "running": 1, "busy": 2} == engine.stats()
        go.set()
        assert admitted.result(WAIT_S) == "decoded"
        for ticket in waiting:
            ticket.future.result(WAIT_S)
        engine.submit("m", picture(tiny_pipeline)).future.result(WAIT_S)


def test_calls_of_owners_take_turns_between_forwards(tiny_pipeline: Any) -> None:
    order: list[str] = []
    with running(tiny_pipeline.unet, max_waiting=20) as engine:
        with together(engine):
            job = engine.submit("m", picture(tiny_pipeline), on_step=lambda job: order.append(f"step {job.step}"))
            calls = [
                engine.call(lambda n=name: order.append(n), owner=name[0]) for name in ("a1", "a2", "a3", "b1", "c1")
            ]
        for call in calls:
            call.result(WAIT_S)
        job.future.result(WAIT_S)
    called = [name for name in order if len(name) == 2]
    assert called == ["a1", "b1", "c1", "a2", "a3"]
    assert order.index("step 1") < order.index("a3")


def test_a_closed_engine_drains_for_a_while_and_cancels_the_rest(tiny_pipeline: Any) -> None:
    for drain_s, ends in ((WAIT_S, True), (0, False)):
        engine = StepEngine()
        engine.add_model("m", tiny_pipeline.unet)
        go, _ = held(engine)
        ticket, call = engine.submit("m", picture(tiny_pipeline)), engine.call(lambda: 7)
        closing = threading.Thread(target=engine.close, kwargs={"drain_s": drain_s})
        closing.start()
        while engine._closing_at == float("inf"):
            threading.Event().wait(0.001)
        with pytest.raises(Busy, match="closing"):
            engine.submit("m", picture(tiny_pipeline))
        go.set()
        closing.join(WAIT_S)
        if ends:
            assert ticket.future.result(0).step == 4 and call.result(0) == 7
        else:
            assert isinstance(ticket.future.exception(0), Cancelled)
