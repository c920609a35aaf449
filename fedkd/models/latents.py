"""Between pictures and latents: the VAE's two directions, with its scaling."""

from __future__ import annotations

import numpy as np
import torch
from diffusers import DiffusionPipeline
from PIL import Image


def to_pixels(images: list[Image.Image], resolution: int) -> torch.Tensor:
    """Pictures as (B, 3, resolution, resolution) float32 in [-1, 1]."""
    arrays = [
        np.asarray(image.convert("RGB").resize((resolution, resolution), Image.Resampling.BICUBIC))
        for image in images
    ]
    return torch.from_numpy(np.stack(arrays)).permute(0, 3, 1, 2).float() / 127.5 - 1


@torch.no_grad()
def encode_images(
    pipe: DiffusionPipeline, images: list[Image.Image], resolution: int, batch: int = 64
) -> torch.Tensor:
    """Scaled latents (N, C, h, w), the mode of the VAE's posterior (no sampling, so no seed)."""
    vae, pixels = pipe.vae, to_pixels(images, resolution)
    parts = [vae.encode(chunk.to(vae.device, vae.dtype)).latent_dist.mode() for chunk in pixels.split(batch)]
    shift = getattr(vae.config, "shift_factor", None) or 0.0
    return (torch.cat(parts) - shift) * vae.config.scaling_factor


def decode_latents(pipe: DiffusionPipeline, latents: torch.Tensor) -> torch.Tensor:
    """Pictures (B, 3, H, W) in about [-1, 1] for scaled latents; keeps gradients."""
    shift = getattr(pipe.vae.config, "shift_factor", None) or 0.0
    return pipe.vae.decode(latents / pipe.vae.config.scaling_factor + shift, return_dict=False)[0]
