"""Several jobs in one forward of the denoiser: what may share it, and how rows are laid together and apart."""

from __future__ import annotations

from collections.abc import Hashable, Sequence
from contextlib import nullcontext
from typing import Any

import torch

from fedkd.inference.denoiser import Job, rows_of
from fedkd.models.adapter import adapter_per_row
from fedkd.models.conditioning import predict


def form_of(job: Job) -> Hashable:
    """What two jobs of one model must have in common to share a forward: shapes, dtypes and device of a row.

    Steps, schedulers, guidance, prompts and adapters may differ; jobs with and without guidance mix.
    """
    latents = job.latents
    conditions = sorted(
        (name, tuple(tensor.shape[1:]), tensor.dtype) for name, tensor in (job.conditions or {}).items()
    )
    return tuple(latents.shape[1:]), latents.dtype, str(latents.device), tuple(conditions)


@torch.no_grad()
def noise_of(denoiser: Any, jobs: Sequence[Job], adapters: Sequence[str]) -> list[torch.Tensor]:
    """One forward for the next step of all `jobs`, which are of one form; each one's noise (its rows, C, h, w).

    Row i of `adapters` names the adapter of `jobs[i]`, '' the bare network. One job alone is computed exactly
    as `denoise` would; in company the timesteps are float32 (rows,), and results differ by rounding alone.
    AdapterError for an adapter that is not loaded.
    """
    shown = [rows_of(job) for job in jobs]
    with _adapters(denoiser, jobs, adapters):
        if len(jobs) == 1:
            return [predict(denoiser, *shown[0], jobs[0].conditions or {})]
        device = jobs[0].latents.device
        timesteps = torch.cat([t.to(device, torch.float32).expand(len(rows)) for rows, t in shown])
        conditions = {
            name: torch.cat([(job.conditions or {})[name] for job in jobs]) for name in jobs[0].conditions or {}
        }
        noise = predict(denoiser, torch.cat([rows for rows, _ in shown]), timesteps, conditions)
    return list(noise.split([job.rows for job in jobs]))


def _adapters(denoiser: Any, jobs: Sequence[Job], adapters: Sequence[str]) -> Any:
    if not any(adapters) and not getattr(denoiser, "peft_config", None):
        return nullcontext()
    names = [name or None for job, name in zip(jobs, adapters, strict=True) for _ in range(job.rows)]
    return adapter_per_row(denoiser, names)


def finite(jobs: Sequence[Job]) -> list[bool]:
    """Whether each job's latents are all finite; one exchange with the accelerator for all of them."""
    if not jobs:
        return []
    return [bool(x) for x in torch.stack([torch.isfinite(job.latents).all() for job in jobs]).tolist()]
