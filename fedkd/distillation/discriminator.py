"""The discriminator of adversarial distillation: small heads on a frozen denoiser's features (LADD)."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import nn
from torch.func import functional_call
from torch.nn import functional as F


class Heads(nn.Module):
    """One small convolutional head a feature map; real is positive, fake negative."""

    def __init__(self, channels: list[int], width: int = 64) -> None:
        super().__init__()
        self.heads = nn.ModuleList(
            nn.Sequential(
                nn.GroupNorm(1, count, affine=False),
                nn.Conv2d(count, width, 1),
                nn.SiLU(),
                nn.Conv2d(width, width, 3, padding=1),
                nn.SiLU(),
                nn.Conv2d(width, 1, 1),
            )
            for count in channels
        )

    def forward(self, features: list[torch.Tensor], *, frozen: bool = False) -> torch.Tensor:
        """Logits (B, sum of h*w) for features [(B, F, h, w)]; `frozen` keeps gradients from the heads' weights."""
        if frozen:
            still = {name: parameter.detach() for name, parameter in self.named_parameters()}
            return functional_call(self, still, (features,))
        told = [head(feature).flatten(1) for head, feature in zip(self.heads, features, strict=True)]
        return torch.cat(told, dim=1)


@contextmanager
def features_of(denoiser: Any) -> Iterator[list[torch.Tensor]]:
    """Collects, during a forward pass, the outputs of a UNet's middle and up blocks or of a transformer's blocks.

    Each is (B, F, h, w); a transformer's tokens (B, n, F) become (B, F, n, 1).
    """
    found: list[torch.Tensor] = []
    layers = getattr(denoiser, "transformer_blocks", None)
    blocks = list(layers)[:: max(1, len(layers) // 4)] if layers else [denoiser.mid_block, *denoiser.up_blocks]

    def keep(_: Any, __: Any, output: Any) -> None:
        tensor = output[-1] if isinstance(output, tuple) else output
        found.append(tensor.transpose(1, 2).unsqueeze(-1) if tensor.ndim == 3 else tensor)

    hooks = [block.register_forward_hook(keep) for block in blocks]
    try:
        yield found
    finally:
        for hook in hooks:
            hook.remove()


class Dinov2Features:
    """Features of pictures in a frozen DINOv2 (ADD's own choice), from a folder or a hub."""

    MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
    PATCHES, LAYERS = 16, 4  # pictures are seen as PATCHES² patches; evenly spaced layers are kept

    def __init__(self, source: str, device: torch.device) -> None:
        from transformers import Dinov2Model

        offline = Path(source).is_dir() or bool(os.environ.get("HF_HUB_OFFLINE"))
        try:
            model = Dinov2Model.from_pretrained(source, use_safetensors=True, local_files_only=offline)
        except Exception as error:
            raise ValueError(
                f"distillation.adversarial.dinov2={source} cannot be loaded ({str(error).splitlines()[0]}); "
                "give a folder or hub id of DINOv2 in safetensors, or features=unet"
            ) from error
        self.model = model.requires_grad_(False).eval().to(device)

    def __call__(self, pictures: torch.Tensor) -> list[torch.Tensor]:
        """[(B, F, n, 1)] of pictures (B, 3, H, W) in [-1, 1], with gradients to them."""
        side = self.PATCHES * self.model.config.patch_size
        seen = F.interpolate(pictures.float(), (side, side), mode="bilinear", antialias=True, align_corners=False)
        mean, std = (torch.tensor(v, device=seen.device).view(1, 3, 1, 1) for v in (self.MEAN, self.STD))
        hidden = self.model(((seen + 1) / 2 - mean) / std, output_hidden_states=True).hidden_states[1:]
        step = max(1, len(hidden) // self.LAYERS)
        return [tokens.transpose(1, 2).unsqueeze(-1) for tokens in hidden[::-1][::step][: self.LAYERS]]
