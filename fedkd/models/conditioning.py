"""What a Stable Diffusion denoiser is told besides latents: one small form for SD 1.x, 2.x, SDXL and SD3."""

from __future__ import annotations

from typing import Any

import torch
from diffusers import DiffusionPipeline

Conditions = dict[str, torch.Tensor]


@torch.no_grad()
def encode_prompts(pipe: DiffusionPipeline, prompts: list[str]) -> Conditions:
    """Encode prompts, one row each.

    Returns `encoder_hidden_states` (rows, S, D); SDXL adds `text_embeds` (rows, P) and `time_ids`
    (rows, 6); SD3 adds `pooled_projections` (rows, P).
    """
    device = pipe._execution_device
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


def take(conditions: Conditions, rows: torch.Tensor) -> Conditions:
    """The rows of `conditions` at the indices `rows` (B,)."""
    return {key: value[rows] for key, value in conditions.items()}


def predict(
    denoiser: Any, latents: torch.Tensor, timesteps: torch.Tensor, conditions: Conditions
) -> torch.Tensor:
    """One raw model output (B, C, h, w) for `latents` (B, C, h, w) at `timesteps` (B,) or a scalar tensor.

    Latents and conditions are cast to the dtype of the denoiser's own weights.
    """
    dtype = next(denoiser.parameters()).dtype
    latents, conditions = latents.to(dtype), {key: value.to(dtype) for key, value in conditions.items()}
    extra = {key: conditions[key] for key in ("text_embeds", "time_ids") if key in conditions}
    if "pooled_projections" in conditions:
        return denoiser(
            hidden_states=latents,
            timestep=timesteps.expand(latents.shape[0]),
            encoder_hidden_states=conditions["encoder_hidden_states"],
            pooled_projections=conditions["pooled_projections"],
            return_dict=False,
        )[0]
    return denoiser(
        latents,
        timesteps,
        encoder_hidden_states=conditions["encoder_hidden_states"],
        added_cond_kwargs=extra or None,
        return_dict=False,
    )[0]


def latent_shape(pipe: DiffusionPipeline, resolution: int) -> tuple[int, int, int]:
    """(C, h, w) of the latents of a square picture of `resolution` pixels."""
    side = resolution // pipe.vae_scale_factor
    return int(pipe.vae.config.latent_channels), side, side
