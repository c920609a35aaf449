"""FLOPs and bytes of a Stable Diffusion model, counted on the meta device: no weights, no waiting."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from diffusers import DiffusionPipeline
from torch.utils.flop_counter import FlopCounterMode

from fedkd.models.conditioning import Conditions, latent_shape, predict
from fedkd.models.pipeline import denoiser_of

T5_TOKENS = 256  # what diffusers' SD3 pipelines ask of their third encoder


def count_flop(forward: Callable[[], Any]) -> int:
    """FLOPs (1 multiply-accumulate = 2) of the matrix products, convolutions and attention in one call."""
    with torch.no_grad(), FlopCounterMode(display=False) as counter:
        forward()
    return int(counter.get_total_flops())


def meta_copy(module: torch.nn.Module) -> Any:
    """The same architecture built from `module.config` on the meta device; adapters are not in it."""
    kind: Any = type(module)
    with torch.device("meta"):
        built = kind.from_config(module.config) if hasattr(kind, "from_config") else kind(module.config)
    return built.eval()


def parameter_bytes(module: torch.nn.Module, value_bytes: int) -> int:
    """Size of all parameters when each takes `value_bytes`."""
    return sum(parameter.numel() for parameter in module.parameters()) * value_bytes


def conditions_for(pipe: DiffusionPipeline, denoiser: torch.nn.Module) -> Conditions:
    """Conditions of one prompt on the meta device, shaped by the denoiser's config."""
    config: Any = denoiser.config
    tokens = int(pipe.tokenizer.model_max_length)
    with torch.device("meta"):
        if hasattr(pipe, "transformer"):  # SD3: CLIP tokens, then T5 tokens
            return {
                "encoder_hidden_states": torch.empty(1, tokens + T5_TOKENS, config.joint_attention_dim),
                "pooled_projections": torch.empty(1, config.pooled_projection_dim),
            }
        conditions = {"encoder_hidden_states": torch.empty(1, tokens, config.cross_attention_dim)}
        if hasattr(pipe, "text_encoder_2"):  # SDXL
            ids = 6 * config.addition_time_embed_dim
            conditions["text_embeds"] = torch.empty(1, config.projection_class_embeddings_input_dim - ids)
            conditions["time_ids"] = torch.empty(1, 6)
        return conditions


def denoiser_flop(denoiser: torch.nn.Module, latents: tuple[int, int, int], conditions: Conditions) -> int:
    """FLOPs of one step for one picture without guidance; `latents` is (C, h, w)."""
    model = meta_copy(denoiser)
    x = torch.empty(1, *latents, device="meta")
    timesteps = torch.ones(1, device="meta")
    return count_flop(lambda: predict(model, x, timesteps, conditions))


def text_encoder_flop(encoder: torch.nn.Module, tokens: int) -> int:
    """FLOPs of encoding one prompt of `tokens` tokens, padding included."""
    model = meta_copy(encoder)
    ids = torch.zeros(1, tokens, dtype=torch.long, device="meta")
    # a mask that is given spares the encoder from looking at values, which meta tensors do not have
    mask = torch.ones(1, tokens, dtype=torch.long, device="meta")
    try:
        return count_flop(lambda: model(ids))
    except (NotImplementedError, RuntimeError):
        return count_flop(lambda: model(ids, attention_mask=mask))


def decoder_flop(vae: torch.nn.Module, latents: tuple[int, int, int]) -> int:
    """FLOPs of decoding one picture; `latents` is (C, h, w)."""
    model = meta_copy(vae)
    x = torch.empty(1, *latents, device="meta")
    return count_flop(lambda: model.decode(x, return_dict=False))


def encoder_flop(vae: torch.nn.Module, resolution: int) -> int:
    """FLOPs of encoding one square picture of `resolution` pixels, as image-to-image does."""
    model = meta_copy(vae)
    x = torch.empty(1, 3, resolution, resolution, device="meta")
    return count_flop(lambda: model.encode(x, return_dict=False))


def model_cost(pipe: DiffusionPipeline, resolution: int, value_bytes: int | None = None) -> dict[str, int]:
    """The numbers of `fedkd.planning.system.ModelCost` for a pipeline at a square `resolution` (pixels).

    `value_bytes` is the size of one number on the link and on disk; None takes the denoiser's dtype.
    """
    denoiser = denoiser_of(pipe)
    size = value_bytes or next(denoiser.parameters()).element_size()
    shape = latent_shape(pipe, resolution)
    conditions = conditions_for(pipe, denoiser)
    tokens = int(pipe.tokenizer.model_max_length)
    encoders = {
        name: module
        for name, module in pipe.components.items()
        if name.startswith("text_encoder") and isinstance(module, torch.nn.Module)
    }
    encoder_bytes = sum(parameter_bytes(part, size) for part in encoders.values())
    denoiser_bytes, vae_bytes = parameter_bytes(denoiser, size), parameter_bytes(pipe.vae, size)
    return {
        "unet_flop": denoiser_flop(denoiser, shape, conditions),
        "text_encoder_flop": sum(
            text_encoder_flop(module, T5_TOKENS if name == "text_encoder_3" else tokens)
            for name, module in encoders.items()
        ),
        "vae_flop": decoder_flop(pipe.vae, shape),
        "unet_bytes": denoiser_bytes,
        "latents_bytes": shape[0] * shape[1] * shape[2] * size,
        "embedding_bytes": sum(value.numel() for value in conditions.values()) * size,
        "image_bytes": 3 * resolution * resolution,
        "total_bytes": denoiser_bytes + vae_bytes + encoder_bytes,
        "text_encoder_bytes": encoder_bytes,
        "vae_bytes": vae_bytes,
    }
