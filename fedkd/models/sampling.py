"""Drawing pictures with the plain diffusers pipeline, in batches, reproducibly."""

from __future__ import annotations

from collections.abc import Callable

import torch
from diffusers import DiffusionPipeline
from PIL import Image

Progress = Callable[[int, int], None]


def sample(
    pipe: DiffusionPipeline,
    prompts: list[str],
    *,
    seed: int,
    num_inference_steps: int,
    guidance_scale: float,
    batch_size: int = 64,
    resolution: int | None = None,
    progress: Progress | None = None,
    seeds: list[int] | None = None,
) -> list[Image.Image]:
    """One picture a prompt; a CPU generator seeded once, so the result does not depend on the device.

    With `seeds`, one a prompt, a picture's noise is its own and does not depend on the others either.
    """
    once = torch.Generator("cpu").manual_seed(seed)
    each = [torch.Generator("cpu").manual_seed(own) for own in seeds or ()]
    size = {"height": resolution, "width": resolution} if resolution else {}
    images: list[Image.Image] = []
    for start in range(0, len(prompts), batch_size):
        images += pipe(
            prompts[start : start + batch_size],
            num_inference_steps=num_inference_steps,
            guidance_scale=guidance_scale,
            generator=each[start : start + batch_size] or once,
            **size,
        ).images
        if progress:
            progress(len(images), len(prompts))
    return images
