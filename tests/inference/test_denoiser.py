"""A picture whose denoising stops at any step and goes on elsewhere equals the diffusers pipeline's."""

from __future__ import annotations

from typing import Any

import diffusers
import pytest
import torch

from fedkd.inference.denoiser import decode, denoise, encode, hand_off, start, take_up
from fedkd.inference.handoff import HandOff
from fedkd.inference.schedulers import SCHEDULERS, SchedulerError

T = 4
# The SD pipeline itself cannot run flow matching.
SPLITTABLE = [name for name in SCHEDULERS if not name.startswith("FlowMatch")]
SLOW = ("KDPM2AncestralDiscreteScheduler", "KDPM2DiscreteScheduler")  # a second for each set_timesteps
pytestmark = pytest.mark.filterwarnings("ignore:__array:DeprecationWarning", "ignore::FutureWarning")


def unsplit(pipe: Any, scheduler: str, guidance: float, output_type: str = "latent", seed: int = 3) -> Any:
    before = pipe.scheduler
    pipe.scheduler = getattr(diffusers, scheduler).from_config(before.config)
    try:
        return pipe(
            "a red seven",
            num_inference_steps=T,
            guidance_scale=guidance,
            output_type=output_type,
            generator=torch.Generator("cpu").manual_seed(seed),
        ).images
    finally:
        pipe.scheduler = before


def begin(pipe: Any, scheduler: str, guidance: float = 2.0, seed: int = 3) -> Any:
    return start(
        pipe,
        encode(pipe, "a red seven", guidance),
        seed=seed,
        num_inference_steps=T,
        guidance_scale=guidance,
        scheduler=scheduler,
    )


@pytest.mark.parametrize("scheduler", SPLITTABLE)
def test_every_split_point_gives_the_pipelines_latents_bit_for_bit(tiny_pipeline: Any, scheduler: str) -> None:
    expected = unsplit(tiny_pipeline, scheduler, 2.0)
    assert torch.isfinite(expected).all()
    for k in (3,) if scheduler in SLOW else range(begin(tiny_pipeline, scheduler).total + 1):
        job = denoise(tiny_pipeline.unet, begin(tiny_pipeline, scheduler), k)
        data = hand_off(job, "m", with_conditions=True).to_bytes()
        # what the sender does afterwards must not matter
        denoise(tiny_pipeline.unet, job)
        resumed = denoise(tiny_pipeline.unet, take_up(HandOff.from_bytes(data, model="m")))
        assert torch.equal(resumed.latents, expected), f"{scheduler} split at {k}"
        assert torch.equal(job.latents, expected)


def test_without_guidance_one_row_is_computed_and_the_result_is_the_pipelines(tiny_pipeline: Any) -> None:
    job = begin(tiny_pipeline, "EulerAncestralDiscreteScheduler", guidance=1.0)
    assert job.conditions["encoder_hidden_states"].shape[0] == 1
    expected = unsplit(tiny_pipeline, "EulerAncestralDiscreteScheduler", 1.0)
    assert torch.equal(denoise(tiny_pipeline.unet, job).latents, expected)


def test_a_job_handed_over_at_every_step_is_still_exact(tiny_pipeline: Any) -> None:
    job = begin(tiny_pipeline, "DPMSolverMultistepScheduler")
    while job.step < job.total:
        denoise(tiny_pipeline.unet, job, job.step + 1)
        job = take_up(HandOff.from_bytes(hand_off(job, "m", with_conditions=True).to_bytes()))
    assert torch.equal(job.latents, unsplit(tiny_pipeline, "DPMSolverMultistepScheduler", 2.0))


def test_half_precision_splits_exactly_too(tiny_pipeline: Any, tiny_folder: Any) -> None:
    from fedkd.models.pipeline import load_pipeline

    pipe: Any = load_pipeline(str(tiny_folder), dtype="bfloat16")
    expected = unsplit(pipe, "DPMSolverMultistepScheduler", 2.0)
    job = denoise(pipe.unet, begin(pipe, "DPMSolverMultistepScheduler"), 2)
    found = HandOff.from_bytes(hand_off(job, "m", with_conditions=True).to_bytes())
    assert found.dtype == "bfloat16"
    assert torch.equal(denoise(pipe.unet, take_up(found)).latents, expected)


def test_the_picture_is_the_pipelines(tiny_pipeline: Any) -> None:
    job = denoise(tiny_pipeline.unet, begin(tiny_pipeline, "DDIMScheduler"))
    assert decode(tiny_pipeline.vae, job.latents).tobytes() == (
        unsplit(tiny_pipeline, "DDIMScheduler", 2.0, "pil")[0].tobytes()
    )


def test_deterministic_schedulers_send_no_generator_state(tiny_pipeline: Any) -> None:
    for scheduler, drawn in (("DDIMScheduler", False), ("EulerAncestralDiscreteScheduler", True)):
        job = denoise(tiny_pipeline.unet, begin(tiny_pipeline, scheduler), 2)
        assert (hand_off(job, "m", with_conditions=False).generator is not None) == drawn


def test_progress_counts_evaluations(tiny_pipeline: Any) -> None:
    seen: list[tuple[int, int]] = []
    job = begin(tiny_pipeline, "HeunDiscreteScheduler")
    denoise(tiny_pipeline.unet, job, progress=lambda done, total: seen.append((done, total)))
    assert seen == [(k, 2 * T - 1) for k in range(1, 2 * T)]


def test_a_job_cannot_go_back_or_beyond_its_end(tiny_pipeline: Any) -> None:
    job = denoise(tiny_pipeline.unet, begin(tiny_pipeline, "DDIMScheduler"), 2)
    for until in (1, T + 1):
        with pytest.raises(ValueError, match="out of range"):
            denoise(tiny_pipeline.unet, job, until)


def test_a_job_without_conditions_is_passed_on_but_not_denoised(tiny_pipeline: Any) -> None:
    job = begin(tiny_pipeline, "DDIMScheduler")
    job.conditions = None
    assert denoise(tiny_pipeline.unet, job, 0).step == 0
    with pytest.raises(ValueError, match="no conditions"):
        denoise(tiny_pipeline.unet, job)


@pytest.mark.parametrize(
    ("name", "steps", "expected"),
    [
        ("DDIMSchedular", T, "did you mean 'DDIMScheduler'"),
        ("OsSystem", T, "not known"),
        ("LCMScheduler", 900, "cannot take num_inference_steps=900"),
        ("DDIMScheduler", 0, "give 1 to 1000"),
    ],
)
def test_schedulers_that_cannot_be_used_are_named(tiny_pipeline: Any, name: str, steps: int, expected: str) -> None:
    conditions = encode(tiny_pipeline, "a", 1.0)
    with pytest.raises(SchedulerError, match=expected):
        start(tiny_pipeline, conditions, seed=0, num_inference_steps=steps, guidance_scale=1.0, scheduler=name)
