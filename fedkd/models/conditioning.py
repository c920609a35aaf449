"""What a denoiser is told besides latents: one small form for SD 1.x, 2.x, SDXL, SD3 and ControlNet."""

from __future__ import annotations

from typing import Any

import torch
from diffusers import DiffusionPipeline
from PIL import Image

from fedkd.models.control import ControlledUNet, control_conditions
from fedkd.models.pipeline import device_of

Conditions = dict[str, torch.Tensor]


@torch.no_grad()
def encode_prompts(pipe: DiffusionPipeline, prompts: list[str]) -> Conditions:
    """Encode prompts, one row each.

    Returns `encoder_hidden_states` (rows, S, D); SDXL adds `text_embeds` (rows, P) and `time_ids`
    (rows, 6); SD3 adds `pooled_projections` (rows, P).
    """
    device = device_of(pipe)
    rows = len(prompts)
    if hasattr(pipe, "transformer"):
        encoded = pipe.encode_prompt(prompts, None, None, device=device, do_classifier_free_guidance=False)
        return {"encoder_hidden_states": encoded[0], "pooled_projections": encoded[2]}
    if hasattr(pipe, "text_encoder_2"):
        encoded = pipe.encode_prompt(prompts, device=device, do_classifier_free_guidance=False)
        side = pipe.default_sample_size * pipe.vae_scale_factor
        time_ids = torch.tensor([[side, side, 0, 0, side, side]], dtype=encoded[0].dtype, device=device)
        return {
            "encoder_hidden_states": encoded[0],
            "text_embeds": encoded[2],
            "time_ids": time_ids.expand(rows, -1),
        }
    encoded = pipe.encode_prompt(prompts, device, 1, False)
    return {"encoder_hidden_states": encoded[0]}


@torch.no_grad()
def encode_control(pipe: Any, image: Image.Image, *, rows: int, scale: float = 1.0) -> Conditions:
    """What a ControlNet pipeline's denoiser is told by `image`, to be merged with `encode_prompts`'s answer.

    Returns `control_image` (rows, 3, H, W) in [0, 1] at the size of the pipeline's pictures, the same in
    every row, and `control_scale` (rows, 1, 1, 1) float32. ValueError for a ControlNet that pools its
    residuals (shuffle), which guides the conditional row alone.
    """
    if getattr(pipe.controlnet.config, "global_pool_conditions", False):
        raise ValueError("controlnet.global_pool_conditions=true is not supported; give one that does not pool")
    side = pipe.unet.config.sample_size
    height, width = (side, side) if isinstance(side, int) else side
    pixels = pipe.prepare_image(
        image=image,
        width=width * pipe.vae_scale_factor,
        height=height * pipe.vae_scale_factor,
        batch_size=1,
        num_images_per_prompt=1,
        device=device_of(pipe),
        dtype=pipe.controlnet.dtype,
    )
    return control_conditions(pixels, rows=rows, scale=scale)


def take(conditions: Conditions, rows: torch.Tensor) -> Conditions:
    """The rows of `conditions` at the indices `rows` (B,)."""
    return {key: value[rows] for key, value in conditions.items()}


def predict(denoiser: Any, latents: torch.Tensor, timesteps: torch.Tensor, conditions: Conditions) -> torch.Tensor:
    """One raw model output (B, C, h, w) for `latents` (B, C, h, w) at `timesteps` (B,) or a scalar tensor.

    Latents and conditions are cast to the dtype of the denoiser's own weights, all but `control_scale`.
    ValueError when conditions come from a control image and `denoiser` is no ControlledUNet.
    """
    dtype = next(denoiser.parameters()).dtype
    latents = latents.to(dtype)
    cast = {key: value if key == "control_scale" else value.to(dtype) for key, value in conditions.items()}
    if "pooled_projections" in cast:
        return denoiser(
            hidden_states=latents,
            timestep=timesteps.expand(latents.shape[0]),
            encoder_hidden_states=cast["encoder_hidden_states"],
            pooled_projections=cast["pooled_projections"],
            return_dict=False,
        )[0]
    extra = {key: cast[key] for key in ("text_embeds", "time_ids") if key in cast}
    control = {key: cast[key] for key in ("control_image", "control_scale") if key in cast}
    if control and not isinstance(denoiser, ControlledUNet):
        raise ValueError("these conditions hold a control image, but the denoiser has no ControlNet beside it")
    return denoiser(
        latents,
        timesteps,
        encoder_hidden_states=cast["encoder_hidden_states"],
        added_cond_kwargs=extra or None,
        return_dict=False,
        **control,
    )[0]


def latent_shape(pipe: DiffusionPipeline, resolution: int) -> tuple[int, int, int]:
    """(C, h, w) of the latents of a square picture of `resolution` pixels."""
    side = resolution // pipe.vae_scale_factor
    return int(pipe.vae.config.latent_channels), side, side
