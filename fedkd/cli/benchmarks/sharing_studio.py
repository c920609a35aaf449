"""Where the benchmark of sharing draws: many jobs in one forward, and pictures judged against those drawn alone."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image

from fedkd.cli.benchmarks.sharing_prompts import Wanted
from fedkd.inference.denoiser import Job, decode, encode, settle, start
from fedkd.inference.prompt_embedding import DENOISER, TEXT_ENCODER, text_encoder_embedding
from fedkd.inference.prompt_probe import answer, probe
from fedkd.inference.row_batch import noise_of
from fedkd.inference.shared_steps import fork
from fedkd.planning.sharing import unit

STEPS, GUIDANCE, SCHEDULER = 12, 2.0, "DDIMScheduler"
BATCH = 16  # jobs of a forward
MOST_DB = 60.0  # the PSNR that equal pictures count with


class Studio:
    """The shipped model and its judge."""

    def __init__(self) -> None:
        from fedkd.evaluation.accuracy import judge
        from fedkd.models.pipeline import load_pipeline
        from fedkd.models.source import resolve_model
        from fedkd.serving.components import component_files, model_digest

        folder = resolve_model("tiny-sd")
        self.pipe: Any = load_pipeline(folder, device="cpu", dtype="float32", scheduler=SCHEDULER)
        self.judge = judge("reference-classifier")
        self.digest = model_digest(component_files(Path(folder)))
        self._conditions: dict[str, Any] = {}
        self._answers: dict[str, Any] = {}

    def conditions(self, wanted: Wanted) -> Any:
        """The conditions of a prompt, encoded once."""
        if wanted.prompt not in self._conditions:
            self._conditions[wanted.prompt] = encode(self.pipe, wanted.prompt, GUIDANCE)
        return self._conditions[wanted.prompt]

    def embedding(self, wanted: Wanted, by: str) -> Any:
        """The prompt's direction (d,), as an edge sees it by its DENOISER or TEXT_ENCODER."""
        if by == TEXT_ENCODER:
            return unit(text_encoder_embedding(self.conditions(wanted)))
        assert by == DENOISER
        if wanted.prompt not in self._answers:
            job = self.job(wanted, 0)
            stepped = [self._step(probe(job, blank=blank)) for blank in (False, True)]
            self._answers[wanted.prompt] = unit(answer(*stepped))
        return self._answers[wanted.prompt]

    def job(self, wanted: Wanted, seed: int) -> Job:
        """A picture before its first step."""
        facts: dict[str, Any] = {"num_inference_steps": STEPS, "guidance_scale": GUIDANCE, "scheduler": SCHEDULER}
        return start(self.pipe, self.conditions(wanted), seed=seed, **facts)

    def forked(self, job: Job, wanted: Wanted) -> Job:
        """Another prompt's picture from where `job` stands."""
        return fork(job, self.conditions(wanted))

    def _step(self, job: Job) -> Job:
        settle(job, noise_of(self.pipe.unet, [job], [""])[0])
        return job

    def finish(self, jobs: Sequence[Job], on_step: Callable[[int, Job], None] | None = None) -> None:
        """All jobs to their end, wherever they stand; `on_step(place, job)` after each step."""
        for begin in range(0, len(jobs), BATCH):
            batch = list(enumerate(jobs))[begin : begin + BATCH]
            while active := [(place, job) for place, job in batch if job.step < job.total]:
                noises = noise_of(self.pipe.unet, [job for _, job in active], [""] * len(active))
                for (place, job), noise in zip(active, noises, strict=True):
                    settle(job, noise)
                    if on_step:
                        on_step(place, job)

    def pictures(self, jobs: Sequence[Job]) -> list[Image.Image]:
        """The finished jobs' pictures."""
        return [decode(self.pipe.vae, job.latents) for job in jobs]

    def right(self, images: Sequence[Image.Image], wanted: Sequence[Wanted]) -> Any:
        """(N,) whether the judge reads all that was asked for, as 0.0 or 1.0."""
        read = self.judge.read(list(images), images[0].size[0])
        return np.array([float(found == each.slots) for found, each in zip(read, wanted, strict=True)])


def likeness(images: Sequence[Image.Image], alone: Sequence[Image.Image]) -> tuple[Any, Any]:
    """(N,) PSNR in dB, MOST_DB at most, and (N,) SSIM of pictures against those that were drawn alone."""
    from torchmetrics.functional.image import (
        peak_signal_noise_ratio,
        structural_similarity_index_measure,
    )

    from fedkd.models.latents import to_pixels

    side = images[0].size[0]
    found, expected = to_pixels(list(images), side), to_pixels(list(alone), side)
    facts: dict[str, Any] = {"data_range": (-1.0, 1.0), "reduction": "none"}
    psnr = peak_signal_noise_ratio(found, expected, dim=(1, 2, 3), **facts)
    ssim = structural_similarity_index_measure(found, expected, **facts)
    capped = torch.nan_to_num(psnr, posinf=MOST_DB).clamp(max=MOST_DB)
    return np.atleast_1d(capped.numpy()), np.atleast_1d(ssim.numpy())
