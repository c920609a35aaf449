"""What goes wrong in one job of the step engine stays with that job."""

from __future__ import annotations

import gc
import threading
import weakref
from functools import partial
from typing import Any

import pytest
import torch

from fedkd.inference.step_engine import Busy, Cancelled, JobFailed, NotFinite, Ticket
from tests.inference.pictures import WAIT_S, distance, lone, picture, running, together


def spoiled_latents(job: Any) -> None:
    job.latents = torch.full_like(job.latents, float("nan"))


def spoiled_scheduler(job: Any) -> None:
    job.scheduler.alphas_cumprod = None


def spoiled_conditions(job: Any) -> None:
    job.conditions = {"encoder_hidden_states": torch.zeros(2, 16, 8)}


def spoiled_timesteps(job: Any) -> None:
    job.scheduler.timesteps = ["soon"] * 4


@pytest.mark.parametrize(
    ("spoil", "error"),
    [
        (spoiled_latents, NotFinite),
        (spoiled_scheduler, JobFailed),
        (spoiled_conditions, JobFailed),
        (spoiled_timesteps, JobFailed),
    ],
)
def test_a_broken_job_fails_alone(tiny_pipeline: Any, spoil: Any, error: type[Exception]) -> None:
    with running(tiny_pipeline.unet, max_rows=16) as engine:
        broken = picture(tiny_pipeline)
        spoil(broken)
        with together(engine):
            tickets = [engine.submit("m", picture(tiny_pipeline, seed)) for seed in range(2)]
            failing = engine.submit("m", broken)
        with pytest.raises(error):
            failing.future.result(WAIT_S)
        for seed, ticket in enumerate(tickets):
            assert distance(ticket.future.result(WAIT_S).latents, lone(tiny_pipeline, seed=seed)) < 1e-5
        assert engine.stats() | {"failed": 1, "finished": 2, "waiting": 0, "running": 0} == engine.stats()


def test_a_listener_that_raises_ends_its_own_job_with_that_error(tiny_pipeline: Any) -> None:
    def complain(_: Any) -> None:
        raise LookupError("no preview")

    with running(tiny_pipeline.unet, max_rows=16) as engine:
        with together(engine):
            heard, fine = (
                engine.submit("m", picture(tiny_pipeline), on_step=complain),
                engine.submit("m", picture(tiny_pipeline)),
            )
        with pytest.raises(LookupError, match="no preview"):
            heard.future.result(WAIT_S)
        assert fine.future.result(WAIT_S).step == 4


def test_a_call_that_raises_answers_its_error_and_the_engine_goes_on(tiny_pipeline: Any) -> None:
    with running(tiny_pipeline.unet) as engine:
        with pytest.raises(ZeroDivisionError):
            engine.call(lambda: 1 / 0).result(WAIT_S)
        assert engine.submit("m", picture(tiny_pipeline)).future.result(WAIT_S).step == 4


def test_a_forward_that_runs_out_of_memory_is_tried_with_fewer_rows(tiny_pipeline: Any) -> None:
    def refuse_eight_rows(_: Any, args: Any) -> None:
        if len(args[0]) > 4:
            raise torch.OutOfMemoryError("out of memory")

    hook = tiny_pipeline.unet.register_forward_pre_hook(refuse_eight_rows)
    try:
        with running(tiny_pipeline.unet, max_rows=8) as engine:
            with together(engine):
                tickets = [engine.submit("m", picture(tiny_pipeline, seed)) for seed in range(4)]
            for seed, ticket in enumerate(tickets):
                assert distance(ticket.future.result(WAIT_S).latents, lone(tiny_pipeline, seed=seed)) < 1e-5
            assert engine.stats()["largest_rows"] == 4
    finally:
        hook.remove()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"key": "other"}, "no model 'other' in this engine; it has m"),
        ({"until": 9}, "until=9 is out of range"),
        ({"adapter": "edge-1"}, "no adapter 'edge-1'"),
    ],
)
def test_what_cannot_be_done_is_refused_at_once(tiny_pipeline: Any, change: dict[str, Any], message: str) -> None:
    with running(tiny_pipeline.unet) as engine, pytest.raises(ValueError, match=message):
        engine.submit(**{"key": "m", "job": picture(tiny_pipeline)} | change)


def test_conditions_of_too_few_rows_cannot_shift_the_rows_of_others(tiny_pipeline: Any) -> None:
    job = picture(tiny_pipeline)
    job.conditions = {name: tensor[:1] for name, tensor in job.conditions.items()}
    with running(tiny_pipeline.unet) as engine, pytest.raises(ValueError, match="must have 2 rows"):
        engine.submit("m", job)


def test_many_threads_that_submit_cancel_and_call_all_get_their_outcome(tiny_pipeline: Any) -> None:
    tickets: list[Ticket] = []
    sent_away: list[Busy] = []

    def customer(number: int) -> None:
        for seed in range(4):
            try:  # a tokenizer bears one thread only, so that prompts are encoded on the engine's
                job = engine.call(partial(picture, tiny_pipeline, seed), owner=str(number)).result(WAIT_S)
                ticket = engine.submit("m", job, owner=str(number % 3), exact=seed == 3)
            except Busy as busy:
                sent_away.append(busy)
                continue
            if (number + seed) % 3 == 0:
                ticket.cancel()
            tickets.append(ticket)

    with running(tiny_pipeline.unet, max_waiting=16) as engine:
        customers = [threading.Thread(target=customer, args=(number,)) for number in range(8)]
        for thread in customers:
            thread.start()
        for thread in customers:
            thread.join(WAIT_S)
        for ticket in tickets:
            error = ticket.future.exception(WAIT_S)
            assert error is None or isinstance(error, Cancelled)
        engine.call(lambda: None).result(WAIT_S)
    seen = engine.stats()
    assert seen["jobs"] == seen["finished"] + seen["cancelled"] and seen["failed"] == 0
    assert seen["waiting"] == seen["running"] == 0 and len(sent_away) == seen["busy"]


def test_an_idle_engine_keeps_nothing_of_the_jobs_it_had(tiny_pipeline: Any) -> None:
    with running(tiny_pipeline.unet, max_rows=16) as engine:
        jobs = [picture(tiny_pipeline, seed) for seed in range(3)]
        kept = [weakref.ref(job) for job in jobs]
        with together(engine):
            tickets = [engine.submit("m", job, on_step=lambda _: None) for job in jobs]
        tickets[2].cancel()
        for ticket in tickets:
            ticket.future.exception(WAIT_S)
        engine.call(lambda: None).result(WAIT_S)
        del jobs, ticket, tickets
        gc.collect()
        assert [job() for job in kept] == [None] * 3
