"""D_n to D'_n by redoing part of the noise schedule on each private picture (SDEdit, through diffusers)."""

from __future__ import annotations

import torch
from diffusers import AutoPipelineForImage2Image, DiffusionPipeline
from PIL import Image

from fedkd.recipe import SynthesisConfig


def redraw(
    pipe: DiffusionPipeline,
    images: list[Image.Image],
    captions: list[str],
    config: SynthesisConfig,
    seed: int,
) -> list[Image.Image]:
    """One variation of each picture: `strength` of the schedule is noised and denoised again."""
    img2img = AutoPipelineForImage2Image.from_pipe(pipe)
    img2img.set_progress_bar_config(disable=True)
    generator = torch.Generator("cpu").manual_seed(seed)
    # `strength` keeps a share of the steps; ask for enough that at least one is left.
    steps = max(config.num_inference_steps, round(1 / config.strength + 0.5))
    drawn: list[Image.Image] = []
    for start in range(0, len(images), config.batch_size):
        drawn += img2img(
            prompt=captions[start : start + config.batch_size],
            image=images[start : start + config.batch_size],
            strength=config.strength,
            num_inference_steps=steps,
            guidance_scale=config.guidance_scale,
            generator=generator,
        ).images
    return drawn
