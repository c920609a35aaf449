"""Jobs that share forwards in the step engine come to the pictures that they come to alone."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from fedkd.inference.denoiser import denoise, hand_off, take_up
from fedkd.inference.handoff import HandOff
from fedkd.inference.step_engine import StepEngine, Ticket
from fedkd.models.adapter import adapter_per_row, add_adapter, remove_adapters
from fedkd.models.pipeline import denoiser_of
from fedkd.recipe import LoraConfig
from tests.inference.pictures import SCHEDULERS, WAIT_S, distance, lone, picture, running, together
from tests.models.families import sd3, sdxl

pytestmark = pytest.mark.filterwarnings("ignore:__array:DeprecationWarning", "ignore::FutureWarning")


def test_jobs_of_all_schedulers_steps_guidances_and_prompts_share_forwards(tiny_pipeline: Any) -> None:
    wishes: list[dict[str, Any]] = [
        {"seed": place, "scheduler": name, "steps": 3 + place % 3, "guidance": 1.0 + place, "prompt": "a" * (place + 1)}
        for place, name in enumerate(SCHEDULERS)
    ]
    expected = [lone(tiny_pipeline, **wish) for wish in wishes]
    with running(tiny_pipeline.unet, max_rows=16) as engine:
        with together(engine):
            tickets = [engine.submit("m", picture(tiny_pipeline, **wish)) for wish in wishes]
        jobs = [ticket.future.result(WAIT_S) for ticket in tickets]
        seen = engine.stats()
    assert max(distance(job.latents, alone) for job, alone in zip(jobs, expected, strict=True)) < 1e-5
    assert seen["forwards"] == max(job.total for job in jobs) < seen["steps"] == sum(job.total for job in jobs)
    assert not any(ticket.lone for ticket in tickets)


def test_a_job_alone_is_bitwise_the_unsplit_run(tiny_pipeline: Any) -> None:
    with running(tiny_pipeline.unet) as engine:
        for name in SCHEDULERS:
            ticket = engine.submit("m", picture(tiny_pipeline, scheduler=name))
            assert torch.equal(ticket.future.result(WAIT_S).latents, lone(tiny_pipeline, scheduler=name))
            assert ticket.lone


@pytest.mark.parametrize("options", [{"batch": False}, {"batch": True}])
def test_exact_jobs_stay_bitwise_in_a_crowd(tiny_pipeline: Any, options: dict[str, bool]) -> None:
    exact = options["batch"]
    with running(tiny_pipeline.unet, max_rows=16, **options) as engine:
        with together(engine):
            tickets = [engine.submit("m", picture(tiny_pipeline, seed), exact=exact and seed < 2) for seed in range(4)]
        for seed, ticket in enumerate(tickets):
            found = ticket.future.result(WAIT_S).latents
            assert ticket.lone == (not exact or seed < 2)
            if ticket.lone:
                assert torch.equal(found, lone(tiny_pipeline, seed=seed))
            assert distance(found, lone(tiny_pipeline, seed=seed)) < 1e-5


def test_a_job_stops_at_a_step_is_handed_off_and_goes_on_in_the_engine(tiny_pipeline: Any) -> None:
    wish = {"scheduler": "DPMSolverMultistepScheduler", "seed": 5}
    with running(tiny_pipeline.unet) as engine:
        half = engine.submit("m", picture(tiny_pipeline, **wish), until=2).future.result(WAIT_S)
        assert half.step == 2
        job = take_up(HandOff.from_bytes(hand_off(half, "m", with_conditions=True).to_bytes()))
        assert torch.equal(engine.submit("m", job).future.result(WAIT_S).latents, lone(tiny_pipeline, **wish))
        assert engine.submit("m", job).future.done()  # nothing is left to do


def test_every_step_is_reported_in_order(tiny_pipeline: Any) -> None:
    seen: list[int] = []
    job = picture(tiny_pipeline, scheduler="HeunDiscreteScheduler")
    with running(tiny_pipeline.unet) as engine:
        engine.submit("m", job, on_step=lambda job: seen.append(job.step)).future.result(WAIT_S)
    assert seen == list(range(1, 8))


def test_each_row_goes_through_its_own_adapter(tmp_path: Path) -> None:
    from tests.conftest import build_pipeline

    pipe = build_pipeline(tmp_path)
    bare = lone(pipe)
    for place, name in enumerate(("edge-1", "edge-2")):
        add_adapter(pipe.unet, name, LoraConfig(rank=2), seed=place)
        with torch.no_grad():
            for key, weight in pipe.unet.named_parameters():
                if f"lora_B.{name}" in key:
                    weight.add_(0.02 * (place + 1))
    expected = {"": bare}
    for name in ("edge-1", "edge-2"):
        with adapter_per_row(pipe.unet, [name] * 2):
            expected[name] = denoise(pipe.unet, picture(pipe)).latents
    assert distance(expected["edge-1"], bare) > 1e-3 < distance(expected["edge-2"], expected["edge-1"])
    try:
        with running(pipe.unet, max_rows=16) as engine:
            with together(engine):
                tickets = {name: engine.submit("m", picture(pipe), adapter=name) for name in expected}
            for name, ticket in tickets.items():
                assert distance(ticket.future.result(WAIT_S).latents, expected[name]) < 1e-5
            assert engine.stats()["forwards"] == 4
            for name in expected:
                alone = engine.submit("m", picture(pipe), adapter=name, exact=True).future.result(WAIT_S)
                assert torch.equal(alone.latents, expected[name])
            with pytest.raises(ValueError, match=r"no adapter 'edge-9'.*loaded: edge-1, edge-2"):
                engine.submit("m", picture(pipe), adapter="edge-9")
    finally:
        remove_adapters(pipe.unet)


@pytest.mark.parametrize("build", [sdxl, sd3])
def test_the_larger_families_share_forwards_too(tmp_path: Path, build: Any) -> None:
    torch.manual_seed(0)
    pipe = build(tmp_path)
    denoiser = denoiser_of(pipe).eval()
    wishes = [{"seed": seed, "scheduler": None, "steps": 3 + seed, "guidance": 1.0 + seed} for seed in range(3)]
    expected = [lone(pipe, **wish) for wish in wishes]
    with running(denoiser, max_rows=16) as engine:
        with together(engine):
            tickets = [engine.submit("m", picture(pipe, **wish)) for wish in wishes]
        for ticket, alone in zip(tickets, expected, strict=True):
            assert distance(ticket.future.result(WAIT_S).latents, alone) < 1e-5
        assert engine.stats()["forwards"] == 5


def test_two_models_and_two_sizes_take_turns(tiny_pipeline: Any, tmp_path: Path) -> None:
    torch.manual_seed(0)
    other = sdxl(tmp_path)
    other.unet.eval()
    wide = picture(tiny_pipeline, 2)
    wide.latents = torch.cat([wide.latents] * 2, dim=3)
    with running(tiny_pipeline.unet, max_rows=16) as engine:
        engine.add_model("xl", other.unet)
        with together(engine):
            tickets = [engine.submit("m", picture(tiny_pipeline)), engine.submit("m", picture(tiny_pipeline, 1))]
            elsewhere = engine.submit("xl", picture(other, scheduler=None))
            wider = engine.submit("m", wide)
        for seed, ticket in enumerate(tickets):
            assert distance(ticket.future.result(WAIT_S).latents, lone(tiny_pipeline, seed=seed)) < 1e-5
        assert torch.equal(elsewhere.future.result(WAIT_S).latents, lone(other, scheduler=None))
        assert wider.future.result(WAIT_S).latents.shape == (1, 4, 8, 16)
        assert elsewhere.lone and wider.lone and not tickets[0].lone
        assert engine.stats()["forwards"] == 12


def test_a_removed_model_ends_its_jobs_while_its_successor_begins(tiny_pipeline: Any) -> None:
    with running(tiny_pipeline.unet) as engine:
        with together(engine):
            old = engine.submit("m", picture(tiny_pipeline))
            gone = engine.remove_model("m")
            with pytest.raises(ValueError, match="no model 'm'"):
                engine.submit("m", picture(tiny_pipeline))
            engine.add_model("m", tiny_pipeline.unet)
            new = engine.submit("m", picture(tiny_pipeline))
            assert not gone.done()
        gone.result(WAIT_S)
        assert old.future.done() and old.lone
        assert torch.equal(new.future.result(WAIT_S).latents, old.future.result().latents)
        engine.remove_model("m").result(0)  # nothing to wait for


WISHES = st.lists(
    st.fixed_dictionaries(
        {
            "scheduler": st.sampled_from(SCHEDULERS),
            "steps": st.integers(4, 5),
            "seed": st.integers(0, 3),
            "guidance": st.sampled_from([1.0, 2.0, 7.5]),
        }
    ),
    min_size=1,
    max_size=5,
)


@given(wishes=WISHES, gaps=st.lists(st.integers(1, 3), min_size=6, max_size=6), max_rows=st.sampled_from([0, 3, 16]))
@settings(max_examples=10, deadline=None, suppress_health_check=[HealthCheck.too_slow])
def test_any_staggered_mix_ends_as_its_lone_runs_in_no_more_forwards(
    tiny_pipeline: Any, wishes: list[dict[str, Any]], gaps: list[int], max_rows: int
) -> None:
    expected = [lone(tiny_pipeline, **wish) for wish in wishes]
    jobs = [picture(tiny_pipeline, **wish) for wish in wishes]
    tickets: list[Ticket] = []

    def submit_next(engine: StepEngine) -> None:
        place = len(tickets)
        # the next job comes when this one has made a step or more, or at its end
        due = min(gaps[place], jobs[place].total)

        def told(job: Any) -> None:
            if job.step == due and place + 1 < len(jobs):
                submit_next(engine)

        tickets.append(engine.submit("m", jobs[place], owner=str(place % 2), on_step=told))

    with running(tiny_pipeline.unet, max_rows=max_rows) as engine:
        submit_next(engine)
        place = 0
        while place < len(jobs):  # a ticket's end comes after its successor was handed in
            assert tickets[place].future.result(WAIT_S).step == jobs[place].total
            place += 1
        seen = engine.stats()
    for job, alone, ticket in zip(jobs, expected, tickets, strict=True):
        assert distance(job.latents, alone) < 1e-5
        assert not ticket.lone or torch.equal(job.latents, alone)
    assert seen["steps"] == sum(job.total for job in jobs) >= seen["forwards"]
    assert seen["finished"] == len(jobs)
