"""What a denoiser makes of a prompt: its first step from noise that is always the same, as a vector.

A text encoder's states may lie close for prompts that are drawn differently, and apart for those that are drawn alike.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from torch.nn import functional as F

from fedkd.inference.denoiser import Job, first_noise
from fedkd.inference.shared_steps import fork

SEED = 0
SIDE = 16  # latents are averaged to this height and width at most, so that a vector stays small


def probe(job: Job, *, blank: bool = False) -> Job:
    """A job for one step, drawn as `job` (before its first step) but for the noise; `blank`: for the empty prompt.

    The empty prompt's conditions are `job`'s own, of its row without guidance; ValueError where it has none.
    """
    conditions = dict(job.conditions or {})
    if blank:
        if job.rows != 2:
            raise ValueError("a picture without guidance has no row of the empty prompt")
        conditions = {name: value[:1].expand_as(value) for name, value in conditions.items()}
    made = fork(job, conditions)
    noise, made.generator = first_noise(SEED, tuple(job.latents.shape), job.latents.dtype)
    made.latents = (noise * getattr(job.scheduler, "init_noise_sigma", 1.0)).to(job.latents)
    made.seed = SEED
    return made


def answer(stepped: Job, blank: Job | None = None) -> Any:
    """(d,) float64: how far a probe's step went elsewhere than the empty prompt's; None where that is nowhere.

    Without `blank` (no guidance) the whole latents stand, which makes all prompts more alike.
    """
    moved = stepped.latents.detach().to("cpu", torch.float64)
    if blank is not None:
        moved = moved - blank.latents.detach().to("cpu", torch.float64)
    height, width = moved.shape[-2:]
    vector = F.adaptive_avg_pool2d(moved, (min(SIDE, height), min(SIDE, width))).flatten().numpy()
    return vector if np.isfinite(vector).all() and np.linalg.norm(vector) > 1e-9 else None
