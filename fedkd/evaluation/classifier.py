"""The reference classifier: reads every slot of a caption off a picture; the judge of prompt accuracy."""

from __future__ import annotations

import json
from collections.abc import Callable
from itertools import pairwise
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from safetensors.torch import load_file, save_file
from torch import nn
from torch.nn import functional as F

from fedkd.models.latents import to_pixels
from fedkd.models.source import SHIPPED


class ClassifierError(ValueError):
    """A reference classifier that cannot be loaded."""


class ReferenceClassifier(nn.Module):
    """A small convolutional network with one head a slot; input (B, 3, side, side) in [-1, 1]."""

    def __init__(self, slots: dict[str, list[str]], width: int = 32) -> None:
        super().__init__()
        self.slots = slots
        channels = [3, width, 2 * width, 4 * width]
        layers: list[nn.Module] = []
        for before, after in pairwise(channels):
            layers += [nn.Conv2d(before, after, 3, padding=1), nn.GroupNorm(8, after), nn.SiLU(), nn.MaxPool2d(2)]
        self.body = nn.Sequential(*layers, nn.Flatten(), nn.Dropout(0.2), nn.LazyLinear(4 * width), nn.SiLU())
        self.heads = nn.ModuleDict({slot: nn.Linear(4 * width, len(values)) for slot, values in slots.items()})

    def forward(self, pixels: torch.Tensor) -> dict[str, torch.Tensor]:
        """Logits (B, values) by slot."""
        features = self.body(pixels)
        return {slot: head(features) for slot, head in self.heads.items()}

    @torch.no_grad()
    def read(self, images: list[Image.Image], resolution: int) -> list[dict[str, str]]:
        """The most likely value of every slot, one dict a picture."""
        logits = self.eval()(to_pixels(images, resolution))
        picks = {slot: values.argmax(1).tolist() for slot, values in logits.items()}
        return [{slot: self.slots[slot][picks[slot][i]] for slot in picks} for i in range(len(images))]

    @torch.no_grad()
    def features(self, images: list[Image.Image], resolution: int) -> np.ndarray:
        """(N, F) features before the heads: the space in which pictures are compared."""
        return self.eval().body(to_pixels(images, resolution)).numpy()

    def save(self, folder: Path) -> None:
        """Write config.json and model.safetensors (fp16)."""
        folder.mkdir(parents=True, exist_ok=True)
        (folder / "config.json").write_text(json.dumps({"slots": self.slots}, indent=1), encoding="utf-8")
        save_file({k: v.half().contiguous() for k, v in self.state_dict().items()}, folder / "model.safetensors")


def load_classifier(name: str) -> ReferenceClassifier:
    """A shipped classifier's name or a folder; ClassifierError when it cannot be read."""
    folder = SHIPPED / name if (SHIPPED / name / "config.json").is_file() else Path(name).expanduser()
    try:
        slots = json.loads((folder / "config.json").read_text("utf-8"))["slots"]
        model = ReferenceClassifier(slots)
        state = {key: value.float() for key, value in load_file(folder / "model.safetensors").items()}
        model(torch.zeros(1, 3, 32, 32))  # gives the lazy layer its shape
        model.load_state_dict(state)
    except Exception as error:
        raise ClassifierError(f"evaluation.classifier={name!r} cannot be loaded: {error}") from error
    return model.eval()


def train_classifier(
    rows: list[tuple[Image.Image, dict[str, str]]],
    slots: dict[str, list[str]],
    *,
    resolution: int,
    steps: int,
    seed: int,
    progress: Callable[[int, int], None] | None = None,
) -> ReferenceClassifier:
    """Fit the classifier on real pictures with their slot values, shifted and blurred at random."""
    torch.manual_seed(seed)
    model = ReferenceClassifier(slots)
    pixels = to_pixels([image for image, _ in rows], resolution)
    labels = {slot: torch.tensor([values.index(row[slot]) for _, row in rows]) for slot, values in slots.items()}
    model(pixels[:1])
    optimizer = torch.optim.AdamW(model.parameters(), lr=2e-3, weight_decay=1e-2)
    rate = torch.optim.lr_scheduler.OneCycleLR(optimizer, max_lr=2e-3, total_steps=steps)
    model.train()
    for step in range(steps):
        index = torch.randint(len(pixels), (64,))
        shift = torch.randint(-2, 3, (2,)).tolist()
        batch = torch.roll(pixels[index], shift, dims=(2, 3))
        # Pictures that went through a VAE are softer and noisier than real ones.
        batch = batch + torch.randn_like(batch) * 0.12 * torch.rand(len(index), 1, 1, 1)
        if step % 2:
            batch = F.interpolate(F.avg_pool2d(batch, 2), scale_factor=2, mode="bilinear")
        logits = model(batch)
        loss = torch.stack([F.cross_entropy(logits[slot], labels[slot][index]) for slot in slots]).sum()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        rate.step()
        if progress:
            progress(step + 1, steps)
    return model.eval()
