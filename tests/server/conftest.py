"""A federation of two edges and four users small enough to run in seconds."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from fedkd.recipe import Recipe, load_recipe

SMALL = (
    "model.num_inference_steps=2",
    "data.max_images=24",
    "synthesis.seeds_per_image=1",
    "synthesis.samples=4",
    "synthesis.personal_steps=2",
    "synthesis.num_inference_steps=2",
    "finetune.steps=3",
    "finetune.batch_size=4",
    "distillation.steps=3",
    "distillation.batch_size=4",
    "distillation.replay=6",
    "evaluation.classifier=''",
    "evaluation.samples_per_concept=1",
    "evaluation.num_inference_steps=1",
    "federation.phase_timeout_s=60",
)


@pytest.fixture()
def small_recipe(tiny_folder: Path, tmp_path: Path) -> Callable[..., Recipe]:
    """A function from overrides to the quickstart recipe in small, on the tiny random model."""

    def make(*overrides: str) -> Recipe:
        places = (f"model.path={tiny_folder}", "model.name=tiny", f"run.out={tmp_path}", "run.name=small")
        return load_recipe("quickstart", [*SMALL, *places, *overrides])

    return make
