"""Between pictures and latents: the VAE's two directions, with its scaling."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from diffusers import DiffusionPipeline
from PIL import Image


def to_pixels(images: list[Image.Image], resolution: int) -> torch.Tensor:
    """Pictures as (B, 3, resolution, resolution) float32 in [-1, 1]."""
    arrays = [
        np.asarray(image.convert("RGB").resize((resolution, resolution), Image.Resampling.BICUBIC)) for image in images
    ]
    return torch.from_numpy(np.stack(arrays)).permute(0, 3, 1, 2).float() / 127.5 - 1


PIXELS_AT_ONCE = 4 * 1024**2  # in one pass of the VAE: four pictures of 1024², sixteen of 512²


@torch.no_grad()
def encode_images(pipe: DiffusionPipeline, images: Sequence[Image.Image], resolution: int) -> torch.Tensor:
    """Scaled latents (N, C, h, w), the mode of the VAE's posterior (no sampling, so no seed).

    `images` may be a column of a dataset on disk: no more pictures than one pass takes are in memory.
    """
    vae, batch = pipe.vae, min(64, max(1, PIXELS_AT_ONCE // resolution**2))
    chunks = (to_pixels(list(images[start : start + batch]), resolution) for start in range(0, len(images), batch))
    parts = [vae.encode(chunk.to(vae.device, vae.dtype)).latent_dist.mode() for chunk in chunks]
    shift = getattr(vae.config, "shift_factor", None) or 0.0
    return (torch.cat(parts) - shift) * vae.config.scaling_factor


def decode_latents(pipe: DiffusionPipeline, latents: torch.Tensor) -> torch.Tensor:
    """Pictures (B, 3, H, W) in about [-1, 1] for scaled latents; keeps gradients."""
    shift = getattr(pipe.vae.config, "shift_factor", None) or 0.0
    scaled = latents / pipe.vae.config.scaling_factor + shift
    return pipe.vae.decode(scaled.to(pipe.vae.dtype), return_dict=False)[0]
