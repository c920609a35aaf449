"""What a picture in the making shows: the clean latents that its last evaluation stands for."""

from __future__ import annotations

import torch

from fedkd.inference.denoiser import Job
from fedkd.training.noise import NoiseSchedule


@torch.no_grad()
def estimate(job: Job) -> torch.Tensor:
    """x̂0 (1, C, h, w) of the job's last evaluation, guidance included; the latents before the first and at the end.

    The latents themselves still hold the noise of the steps to come.
    """
    if job.evaluated is None or job.step == job.total:
        return job.latents
    shown, noise, t = job.evaluated
    schedule = NoiseSchedule.of(job.scheduler, shown.device)
    index = schedule.nearest(t.reshape(1))
    return schedule.predicted_x0(noise.float(), shown.float(), index).to(job.latents.dtype)
