"""Stable Diffusion 1.5 at its real size with random weights, as a diffusers folder: for speed, not for pictures."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

TOKENS = 77
TEXT: dict[str, Any] = {  # CLIP ViT-L/14's text half; the rest are transformers' defaults
    "vocab_size": 49408,
    "hidden_size": 768,
    "intermediate_size": 3072,
    "num_hidden_layers": 12,
    "num_attention_heads": 12,
    "max_position_embeddings": TOKENS,
    "hidden_act": "quick_gelu",
}
VAE: dict[str, Any] = {
    "in_channels": 3,
    "out_channels": 3,
    "latent_channels": 4,
    "block_out_channels": (128, 256, 512, 512),
    "down_block_types": ("DownEncoderBlock2D",) * 4,
    "up_block_types": ("UpDecoderBlock2D",) * 4,
    "layers_per_block": 2,
    "scaling_factor": 0.18215,
}


def random_sd15(folder: Path, *, resolution: int = 512, dtype: str = "float32", device: str = "cpu") -> Path:
    """Write the pipeline to `folder`, for pictures of `resolution` pixels, and answer it; the weights follow seed 0.

    Tokens are tiny-sd's, padded to 77: what a prompt costs is the same, what it says is not.
    """
    import torch
    from diffusers import AutoencoderKL, DDIMScheduler, StableDiffusionPipeline, UNet2DConditionModel
    from transformers import AutoTokenizer, CLIPTextConfig, CLIPTextModel

    from fedkd.cli.benchmarks.step_variants import SD15_UNET
    from fedkd.models.pipeline import DTYPES
    from fedkd.models.source import SHIPPED

    tokens = folder.with_name(f"{folder.name}-tokenizer")
    shutil.copytree(SHIPPED / "tiny-sd" / "tokenizer", tokens, dirs_exist_ok=True)
    tokenizer = AutoTokenizer.from_pretrained(str(tokens), model_max_length=TOKENS)
    sizes: dict[str, Any] = SD15_UNET | {"sample_size": resolution // 8}
    torch.manual_seed(0)
    with torch.device(device):
        parts: dict[str, Any] = {
            "unet": UNet2DConditionModel(**sizes),
            "vae": AutoencoderKL(**VAE, sample_size=resolution),
            "text_encoder": CLIPTextModel(CLIPTextConfig(**TEXT, bos_token_id=583, eos_token_id=584, pad_token_id=584)),
        }
    pipe = StableDiffusionPipeline(
        **{name: part.to(DTYPES[dtype]) for name, part in parts.items()},
        tokenizer=tokenizer,
        scheduler=DDIMScheduler(
            beta_start=0.00085,
            beta_end=0.012,
            beta_schedule="scaled_linear",
            clip_sample=False,
            set_alpha_to_one=False,
            steps_offset=1,
        ),
        safety_checker=None,
        feature_extractor=None,
        requires_safety_checker=False,
    )
    pipe.save_pretrained(folder, safe_serialization=True)
    shutil.rmtree(tokens)
    return folder
