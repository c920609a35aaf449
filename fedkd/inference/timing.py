"""How long this machine takes for a denoising step, a prompt, a picture and a message: what plans are made of."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable
from typing import Any

import torch

from fedkd.inference.denoiser import decode, denoise, encode, hand_off, start, take_up
from fedkd.inference.handoff import HandOff
from fedkd.models.pipeline import denoiser_of

PROMPT = "a red seven on a blue background"
GUIDED = 7.5


def measured_seconds(pipe: Any, *, repeats: int = 7) -> dict[str, float]:
    """Median seconds of `repeats` calls, after one that warms up, for the fields of `planning.machines.Timings`.

    `step_s` and `guided_step_s` are the denoiser with its scheduler; `message_s` is half of packing and
    unpacking one hand-off, the part of one side. ValueError for fewer than 1 repeat.
    """
    if repeats < 1:
        raise ValueError(f"repeats={repeats} is too few; give at least 1")
    found: dict[str, float] = {}
    for field, guidance in (("step_s", 1.0), ("guided_step_s", GUIDED)):
        conditions = encode(pipe, PROMPT, guidance)
        job = start(pipe, conditions, seed=0, num_inference_steps=repeats + 1, guidance_scale=guidance)
        found[field] = median_of(lambda job=job: denoise(denoiser_of(pipe), job, job.step + 1), repeats)  # type: ignore[misc]
    found["encode_s"] = median_of(lambda: encode(pipe, PROMPT, 1.0), repeats)
    found["decode_s"] = median_of(lambda: decode(pipe.vae, job.latents), repeats)

    def there_and_back() -> None:
        data = hand_off(job, "", with_conditions=True).to_bytes()
        take_up(HandOff.from_bytes(data), device=str(pipe.device))

    return found | {"message_s": median_of(there_and_back, repeats) / 2}


def median_of(work: Callable[[], object], repeats: int) -> float:
    """Median seconds of a call; the accelerator's work is waited for, and the first call is not counted."""
    seconds = []
    for _ in range(repeats + 1):
        began = time.perf_counter()
        work()
        if torch.cuda.is_available():
            torch.cuda.synchronize()
        seconds.append(time.perf_counter() - began)
    return statistics.median(seconds[1:])
