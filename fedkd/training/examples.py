"""Captioned images as training examples: latents and conditions encoded once, batches drawn by step."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from datasets import Dataset
from diffusers import DiffusionPipeline

from fedkd.models.conditioning import Conditions, encode_prompts, take
from fedkd.models.latents import encode_images


@dataclass
class Examples:
    """`latents` (N, C, h, w); `conditions` one row a distinct caption, the last row the empty one; `caption` (N,)."""

    latents: torch.Tensor
    conditions: Conditions
    caption: torch.Tensor

    def __len__(self) -> int:
        return len(self.latents)

    def draw(
        self, batch_size: int, caption_dropout: float, generator: torch.Generator
    ) -> tuple[torch.Tensor, torch.Tensor, Conditions]:
        """Indices (B,), latents (B, C, h, w) and conditions of a random batch; some captions made empty."""
        rows = torch.randint(len(self), (batch_size,), generator=generator)
        empty = torch.rand(batch_size, generator=generator) < caption_dropout
        return rows, self.latents[rows], self.told(rows, empty)

    def told(self, rows: torch.Tensor, empty: torch.Tensor) -> Conditions:
        """Conditions of the pictures `rows` (B,), the empty caption's where `empty` (B,) is true."""
        return take(self.conditions, torch.where(empty, self.last, self.caption[rows]))

    @property
    def last(self) -> int:
        """The row of `conditions` that holds the empty caption."""
        return next(iter(self.conditions.values())).shape[0] - 1

    def empty(self, count: int) -> Conditions:
        """Conditions of the empty caption, `count` rows."""
        return take(self.conditions, torch.full((count,), self.last))


def encode_examples(pipe: DiffusionPipeline, dataset: Dataset, resolution: int) -> Examples:
    """Encode pictures and captions of `dataset` once with the frozen VAE and text encoders."""
    captions = list(dataset["caption"])
    distinct = sorted(set(captions))
    position = {text: row for row, text in enumerate(distinct)}
    parts = [encode_prompts(pipe, [*distinct, ""][i : i + 256]) for i in range(0, len(distinct) + 1, 256)]
    conditions = {key: torch.cat([part[key] for part in parts]) for key in parts[0]}
    latents = encode_images(pipe, dataset["image"], resolution)
    return Examples(latents, conditions, torch.tensor([position[text] for text in captions]))
