"""The clean picture that a step stands for, whatever the scheduler's own scale."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from diffusers import DDIMScheduler, FlowMatchEulerDiscreteScheduler

from fedkd.inference import schedulers
from fedkd.inference.denoiser import Job, rows_of, settle
from fedkd.inference.preview import estimate

SHAPE = (1, 4, 8, 8)


def job_of(scheduler: Any, latents: torch.Tensor) -> Job:
    """A job without guidance on a fresh scheduler of six steps."""
    fresh = schedulers.fresh(
        type(scheduler).__name__, schedulers.config_of(scheduler), {"num_inference_steps": 6}, "cpu"
    )
    return Job(latents, fresh, {"num_inference_steps": 6}, 0, torch.Generator().manual_seed(0), 1.0, None)


@pytest.mark.parametrize("prediction", ["epsilon", "v_prediction"])
@pytest.mark.parametrize("name", ["DDIMScheduler", "EulerDiscreteScheduler", "HeunDiscreteScheduler", "LCMScheduler"])
def test_a_right_answer_gives_the_clean_latents(name: str, prediction: str) -> None:
    made = schedulers.scheduler_class(name).from_config(DDIMScheduler(prediction_type=prediction).config)
    clean, noise = torch.randn(2, *SHAPE, generator=torch.Generator().manual_seed(1)).unbind()
    job = job_of(made, torch.zeros(SHAPE))
    t = job.scheduler.timesteps[0]
    signal = job.scheduler.alphas_cumprod[int(t.round())].sqrt()
    spread = (1 - signal**2).sqrt()
    mixed = signal * clean + spread * noise
    job.latents = mixed / signal if float(job.scheduler.init_noise_sigma) > 1 else mixed
    shown, _ = rows_of(job)
    torch.testing.assert_close(shown, mixed, rtol=2e-3, atol=2e-3)
    settle(job, noise if prediction == "epsilon" else signal * noise - spread * clean)
    # Dividing by the small signal of the first step makes rounding large.
    torch.testing.assert_close(estimate(job), clean, rtol=0, atol=0.05)


def test_flow_matching_too() -> None:
    clean, noise = torch.randn(2, *SHAPE, generator=torch.Generator().manual_seed(1)).unbind()
    job = job_of(FlowMatchEulerDiscreteScheduler(shift=3.0), noise)
    rows_of(job)
    settle(job, noise - clean)
    torch.testing.assert_close(estimate(job), clean, rtol=0, atol=0.01)


def test_before_the_first_step_and_at_the_end_it_is_the_latents() -> None:
    job = job_of(DDIMScheduler(), torch.randn(SHAPE))
    assert torch.equal(estimate(job), job.latents)
    while job.step < job.total:
        rows_of(job)
        settle(job, torch.zeros(SHAPE))
    assert torch.equal(estimate(job), job.latents)
