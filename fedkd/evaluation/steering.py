"""Whether pictures follow their condition: agreement of edges, beside the same pictures drawn without it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch
from PIL import Image

from fedkd.data.condition_maps import agreement, canny


def draw_steered(
    pipe: Any,
    net: Any,
    captions: Sequence[str],
    conditions: Sequence[Image.Image],
    *,
    seed: int,
    steps: int = 12,
    guidance_scale: float = 2.0,
    control_scale: float = 1.0,
) -> list[Image.Image]:
    """One picture a caption, each steered by its condition through the ControlNet `net`; seed + i for picture i."""
    from diffusers import StableDiffusionControlNetPipeline

    steered = StableDiffusionControlNetPipeline.from_pipe(pipe, controlnet=net)
    steered.set_progress_bar_config(disable=True)
    return steered(
        list(captions),
        image=list(conditions),
        num_inference_steps=steps,
        guidance_scale=guidance_scale,
        controlnet_conditioning_scale=control_scale,
        generator=[torch.Generator("cpu").manual_seed(seed + place) for place in range(len(captions))],
    ).images


def followed(
    pipe: Any, net: Any, rows: Sequence[Mapping[str, Any]], *, seed: int, steps: int = 12
) -> tuple[float, float]:
    """Mean edge agreement (F1) with the Canny maps of `rows` (`image`, `caption`): steered by them, and not."""
    maps, captions = [canny(row["image"]) for row in rows], [str(row["caption"]) for row in rows]
    facts: dict[str, Any] = {"seed": seed, "steps": steps}
    found = []
    for scale in (1.0, 0.0):
        drawn = draw_steered(pipe, net, captions, maps, control_scale=scale, **facts)
        found.append(float(np.mean([agreement(*pair) for pair in zip(maps, drawn, strict=True)])))
    return found[0], found[1]
