"""The similarity guard: how near a synthetic picture is to the private ones, and which are refused."""

from __future__ import annotations

import torch
from PIL import Image

from fedkd.models.latents import to_pixels


def pixels(images: list[Image.Image], resolution: int) -> torch.Tensor:
    """(N, 3·side²) float32 in [0, 1]."""
    return ((to_pixels(images, resolution) + 1) / 2).flatten(1)


def nearest_distance(candidates: torch.Tensor, private: torch.Tensor) -> torch.Tensor:
    """(N,) root-mean-square distance of each candidate (N, F) to its nearest private one: 0..1 for pixels."""
    return torch.cdist(candidates, private).min(1).values / candidates.shape[1] ** 0.5


def spread(private: torch.Tensor) -> float:
    """Mean distance of a private picture to its nearest other one: the scale to read the guard on."""
    if len(private) < 2:
        return 0.0
    between = torch.cdist(private, private)
    between.fill_diagonal_(float("inf"))
    return float(between.min(1).values.mean()) / private.shape[1] ** 0.5
