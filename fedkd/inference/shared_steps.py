"""Steps that several pictures share: denoised once, then forked into one job for each of them (CDDAA, step 4)."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from typing import Any

import torch

from fedkd.inference.denoiser import Job, denoise
from fedkd.inference.schedulers import FIXED_ATTRIBUTES
from fedkd.models.conditioning import Conditions

LEADS = ("first", "mean")


def fork(job: Job, conditions: Conditions | None) -> Job:
    """A job of its own from where `job` stands, with a member's own `conditions`.

    Latents, scheduler state and generator are copies: whatever one does from here on, the other does not see. The
    same conditions end bit for bit as the job itself.
    """
    # what no step changes need not be copied: the tables are most of a scheduler
    fixed = {id(value): value for key, value in vars(job.scheduler).items() if key in FIXED_ATTRIBUTES}
    generator = torch.Generator("cpu")
    generator.set_state(job.generator.get_state())
    return Job(
        latents=job.latents.detach().clone(),
        scheduler=copy.deepcopy(job.scheduler, fixed),
        arguments=dict(job.arguments),
        seed=job.seed,
        generator=generator,
        guidance_scale=job.guidance_scale,
        conditions=conditions,
        step=job.step,
    )


def mean_conditions(members: Sequence[Conditions]) -> Conditions:
    """The mean of several prompts' conditions, each of the same shapes; ValueError without any."""
    if not members:
        raise ValueError("members=() have no mean; give at least one prompt's conditions")
    return {name: torch.stack([each[name] for each in members]).mean(0) for name in members[0]}


@torch.no_grad()
def denoise_group(denoiser: Any, jobs: Sequence[Job], shared_steps: int, *, lead: str = "first") -> list[Job]:
    """Jobs before their first step, taken together to step `shared_steps`: one run, forked into one job each.

    The run has the noise of the first, and the prompt of the first or the `mean` of all. Without steps to share,
    and for one alone, the jobs themselves come back as they are. ValueError for jobs that are drawn differently,
    or have begun.
    """
    if lead not in LEADS:
        raise ValueError(f"lead={lead!r} is not known; give {' or '.join(LEADS)}")
    if shared_steps == 0 or len(jobs) <= 1:
        return list(jobs)
    conditions = [job.conditions for job in jobs if job.conditions is not None]
    if len({drawn_by(job) for job in jobs}) > 1 or any(job.step for job in jobs) or len(conditions) < len(jobs):
        raise ValueError("only jobs before their first step share, of one scheduler, steps, guidance and shape")
    run = fork(jobs[0], conditions[0] if lead == "first" else mean_conditions(conditions))
    denoise(denoiser, run, shared_steps)
    return [fork(run, each) for each in conditions]


def drawn_by(job: Job) -> tuple[Any, ...]:
    """What jobs must have in common to share steps, besides model and noise."""
    scheduler = job.scheduler
    config = tuple(sorted((key, repr(value)) for key, value in dict(scheduler.config).items()))
    shapes = tuple(sorted((name, tuple(each.shape)) for name, each in (job.conditions or {}).items()))
    return (
        type(scheduler).__name__,
        config,
        tuple(sorted(job.arguments.items())),
        job.guidance_scale,
        tuple(job.latents.shape),
        job.latents.dtype,
        shapes,
    )


def size_bytes(job: Job) -> int:
    """Bytes that a job's latents, generator and scheduler state take; conditions and the scheduler's tables apart."""
    seen: set[int] = set()

    def size(value: Any) -> int:
        if isinstance(value, torch.Tensor):
            if id(value) in seen:
                return 0
            seen.add(id(value))
            return value.numel() * value.element_size()
        return sum(map(size, value)) if isinstance(value, list | tuple) else 0

    kept = {key: value for key, value in vars(job.scheduler).items() if key not in FIXED_ATTRIBUTES}
    return size(job.latents) + size(job.generator.get_state()) + sum(map(size, kept.values()))
