"""Synthetic pictures pass the guard or are dropped, and the audit counts every one."""

from typing import Any

import pytest
import torch

from fedkd.recipe import Recipe, load_recipe
from fedkd.synthesis.guard import nearest_distance, pixels, spread
from fedkd.synthesis.synthesise import synthesise
from tests.distillation.classroom import pictures


def recipe(*overrides: str) -> Recipe:
    small = ["synthesis.personal_steps=2", "synthesis.samples=5", "synthesis.num_inference_steps=2"]
    return load_recipe("quickstart", [*small, "finetune.batch_size=2", *overrides])


@pytest.mark.parametrize(("method", "expected"), [("image_to_image", 8), ("text_to_image", 5), ("both", 13)])
def test_every_method_draws_what_it_says(tiny_pipeline: Any, method: str, expected: int) -> None:
    keys = list(tiny_pipeline.unet.state_dict())
    synthetic, audit = synthesise(tiny_pipeline, pictures(0, 4), recipe(f"synthesis.method={method}"), seed=1)
    assert len(synthetic) == expected == audit["kept"] == audit["drawn"]
    assert audit["refused"] == 0 and audit["private"] == 4
    assert set(synthetic["caption"]) <= {"picture 0", "picture 1"}
    assert list(tiny_pipeline.unet.state_dict()) == keys


def test_no_kept_picture_is_nearer_than_the_guard_allows(tiny_pipeline: Any) -> None:
    private = pictures(0, 4)
    free, _ = synthesise(tiny_pipeline, private, recipe("synthesis.min_distance=0"), seed=1)
    real = pixels(list(private["image"]), 32)
    limit = float(nearest_distance(pixels(list(free["image"]), 32), real).median())
    kept, audit = synthesise(tiny_pipeline, private, recipe(f"synthesis.min_distance={limit}"), seed=1)
    assert float(nearest_distance(pixels(list(kept["image"]), 32), real).min()) >= limit
    assert audit["redrawn"] > 0
    assert audit["drawn"] - audit["redrawn"] == audit["kept"] + audit["refused"]


def test_a_guard_that_refuses_everything_says_what_to_change(tiny_pipeline: Any) -> None:
    with pytest.raises(ValueError, match="the guard refused all"):
        synthesise(tiny_pipeline, pictures(0, 4), recipe("synthesis.min_distance=1.0"), seed=1)


def test_distances_match_plain_arithmetic() -> None:
    a, b = torch.tensor([[0.0, 0.0], [1.0, 1.0]]), torch.tensor([[0.0, 1.0], [0.0, 0.0]])
    assert nearest_distance(a, b).tolist() == pytest.approx([0.0, 0.5**0.5])
    assert spread(torch.tensor([[0.0, 0.0], [0.6, 0.8]])) == pytest.approx(0.5**0.5)
