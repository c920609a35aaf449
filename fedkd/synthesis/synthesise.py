"""A user's step: private captioned pictures D_n in, synthetic ones D'_n out, with the guard's audit."""

from __future__ import annotations

import random
import time
from collections.abc import Callable
from contextlib import nullcontext
from typing import Any

import torch
from datasets import Dataset
from diffusers import DiffusionPipeline
from PIL import Image

from fedkd.data.sources import to_dataset
from fedkd.models.latents import encode_images
from fedkd.recipe import Recipe
from fedkd.synthesis.guard import nearest_distance, pixels, spread
from fedkd.synthesis.image_to_image import redraw
from fedkd.synthesis.text_to_image import draw_personal, personal_config, personalised
from fedkd.training.finetune import privacy_of

Draw = Callable[[list[int], int], list[Image.Image]]
Audit = dict[str, float | int]


def synthesise(pipe: DiffusionPipeline, private: Dataset, recipe: Recipe, seed: int) -> tuple[Dataset, Audit]:
    """Draw D'_n by the recipe's methods; only pictures that pass the guard are in it.

    `image_to_image` uses the model as it came; `text_to_image` and `both` first give it a private LoRA,
    since a model that does not know a concept yet redraws it as something else.

    A picture within `synthesis.min_distance` (RMS pixel distance, 0..1) of any private picture is drawn
    again at most `max_redraws` times, then dropped. Returns the set and the audit: `private`, `drawn`,
    `redrawn`, `refused`, `kept` (counts), `refused_share` (of the pictures asked for), `distance_min`,
    `distance_mean`, `private_distance_mean` (nearest private picture, RMS pixels, 0..1; the last among the private
    ones), the same three of `feature_distance` (RMS of the model's VAE latents, a space that every model has),
    and `seconds`. Raises ValueError when nothing is kept.
    """
    started, config = time.perf_counter(), recipe.synthesis
    images, captions = list(private["image"]), list(private["caption"])
    real = pixels(images, recipe.model.resolution)
    guard = _Guard(real, recipe)
    sources = [i for i in range(len(images)) for _ in range(config.seeds_per_image)]
    asked = random.Random(seed).choices(captions, k=config.samples)

    def vary(chosen: list[int], seed: int) -> list[Image.Image]:
        return redraw(pipe, [images[sources[i]] for i in chosen], [captions[sources[i]] for i in chosen], config, seed)

    def imagine(chosen: list[int], seed: int) -> list[Image.Image]:
        return draw_personal(pipe, [asked[i] for i in chosen], config, seed)

    rows: list[dict[str, Any]] = []
    with personalised(pipe, private, recipe, seed) if config.method != "image_to_image" else nullcontext():
        if config.method != "text_to_image":
            rows += guard.passed([captions[i] for i in sources], vary, seed)
        if config.method != "image_to_image":
            rows += guard.passed(asked, imagine, seed + 1)
    if not rows:
        raise ValueError(
            f"the guard refused all {guard.audit['drawn']} synthetic pictures at "
            f"synthesis.min_distance={config.min_distance}; raise synthesis.strength or lower the distance"
        )
    side, drawn = recipe.model.resolution, [row["image"] for row in rows]
    features = [encode_images(pipe, each, side).float().cpu().flatten(1) for each in (drawn, images)]
    audit = guard.finish(started, *features)
    spent = privacy_of(personal_config(recipe), len(images)) if config.method == "text_to_image" else None
    if spent is not None:  # the pictures come from the adapter alone; other methods show private pictures to the model
        audit |= {"epsilon": round(spent.epsilon, 4), "delta": spent.delta}
    return to_dataset(rows), audit


class _Guard:
    """Counts and distances of one user's synthesis."""

    def __init__(self, private: torch.Tensor, recipe: Recipe) -> None:
        self.private, self.recipe = private, recipe
        self.kept: list[float] = []
        self.audit: Audit = {"private": len(private), "drawn": 0, "redrawn": 0, "refused": 0}

    def passed(self, captions: list[str], draw: Draw, seed: int) -> list[dict[str, Any]]:
        """Rows of the pictures that are far enough; the others are drawn again with other seeds."""
        config = self.recipe.synthesis
        waiting, rows = list(range(len(captions))), []
        for attempt in range(config.max_redraws + 1):
            if not waiting:
                break
            images = draw(waiting, seed * 1009 + attempt)
            distances = nearest_distance(pixels(images, self.recipe.model.resolution), self.private)
            self.audit["drawn"] += len(images)
            self.audit["redrawn"] += len(images) if attempt else 0
            near = []
            for index, image, distance in zip(waiting, images, distances.tolist(), strict=True):
                if distance < config.min_distance:
                    near.append(index)
                else:
                    rows.append({"image": image, "caption": captions[index]})
                    self.kept.append(distance)
            waiting = near
        self.audit["refused"] += len(waiting)
        return rows

    def finish(self, started: float, drawn: torch.Tensor, private: torch.Tensor) -> Audit:
        """The audit with its distances, in pixels and between features (N, F), and seconds."""
        apart = nearest_distance(drawn, private)
        return self.audit | {
            "kept": len(self.kept),
            "refused_share": round(self.audit["refused"] / (len(self.kept) + self.audit["refused"]), 4),
            "feature_distance_min": round(float(apart.min()), 5),
            "feature_distance_mean": round(float(apart.mean()), 5),
            "private_feature_distance_mean": round(spread(private), 5),
            "distance_min": round(min(self.kept), 5),
            "distance_mean": round(sum(self.kept) / len(self.kept), 5),
            "private_distance_mean": round(spread(self.private), 5),
            "seconds": round(time.perf_counter() - started, 2),
        }
