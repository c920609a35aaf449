"""Membership inference finds what was learned by heart, and nothing where nothing was."""

from __future__ import annotations

import copy
from typing import Any

import numpy as np
import pytest
import torch
from datasets import Dataset
from PIL import Image

from fedkd.data.sources import to_dataset
from fedkd.evaluation.membership import against_reference, denoising_losses, loss_threshold, success
from fedkd.models.conditioning import predict, take
from fedkd.training.examples import encode_examples
from fedkd.training.noise import NoiseSchedule


def losses_of(pipe: Any, data: Any) -> np.ndarray:
    return denoising_losses(pipe, data, resolution=32, seed=1)


def blocks(seed: int, count: int) -> Dataset:
    """Pictures of 4 by 4 random colours, which even a random VAE tells apart."""
    colours = np.random.default_rng(seed).integers(0, 256, (count, 4, 4, 3), dtype=np.uint8)
    images = [Image.fromarray(each).resize((32, 32), Image.Resampling.NEAREST) for each in colours]
    return to_dataset([{"image": image, "caption": f"picture {i}"} for i, image in enumerate(images)])


def learn_by_heart(pipe: Any, data: Any, steps: int = 120) -> None:
    """Train the whole denoiser on a few pictures."""
    examples, schedule = encode_examples(pipe, data, 32), NoiseSchedule.of(pipe.scheduler)
    optimizer = torch.optim.AdamW(pipe.unet.requires_grad_(True).parameters(), lr=3e-3)
    generator = torch.Generator().manual_seed(0)
    for _ in range(steps):
        x0 = examples.latents
        index = torch.randint(len(schedule), (len(x0),), generator=generator)
        noise = torch.randn(x0.shape, generator=generator)
        conditions = take(examples.conditions, examples.caption)
        output = predict(pipe.unet, schedule.add_noise(x0, noise, index), schedule.timesteps[index], conditions)
        optimizer.zero_grad()
        (output - schedule.target(x0, noise, index)).square().mean().backward()
        optimizer.step()


def test_a_model_that_learned_pictures_by_heart_gives_them_away(tiny_pipeline: Any) -> None:
    members, others = blocks(0, 8), blocks(100, 8)
    vae = tiny_pipeline.vae
    scale = vae.config.scaling_factor
    vae.register_to_config(scaling_factor=scale / float(encode_examples(tiny_pipeline, members, 32).latents.std()))
    before = [losses_of(tiny_pipeline, part) for part in (members, others)]
    weights = copy.deepcopy(tiny_pipeline.unet.state_dict())
    try:
        learn_by_heart(tiny_pipeline, members)
        after = [losses_of(tiny_pipeline, part) for part in (members, others)]
    finally:
        tiny_pipeline.unet.requires_grad_(False).load_state_dict(weights)
        again = losses_of(tiny_pipeline, members)
        vae.register_to_config(scaling_factor=scale)
    truth, groups = np.repeat([True, False], 8), ["one"] * 16
    assert success(against_reference(after[0], after[1], before[0], before[1]), truth, groups).auc > 0.85
    assert success(against_reference(before[0], before[1], before[0], before[1]), truth, groups).auc == 0.5
    assert np.array_equal(again, before[0])


def test_scores_are_judged_within_groups() -> None:
    # Within each group members and others are alike; only the groups differ.
    members, others = np.array([1.0, 2.0, 11.0]), np.array([1.0, 2.0, 11.0, 12.0, 10.0, 11.0])
    groups = ["a", "a", "b", "a", "a", "b", "b", "b", "b"]
    scores, truth = loss_threshold(members, others), np.repeat([True, False], [3, 6])
    assert success(scores, truth, groups).auc == pytest.approx(0.5)
    assert success(scores, truth, ["all"] * 9).auc > 0.6


def test_perfect_scores_find_every_member_and_random_ones_do_not() -> None:
    truth = np.repeat([True, False], 400)
    assert success(truth.astype(float), truth, [0] * 800).tpr == 1.0
    random = success(np.random.default_rng(0).random(800), truth, [0] * 800)
    assert abs(random.auc - 0.5) < 0.06 and random.tpr < 0.05


def test_groups_without_both_kinds_are_refused() -> None:
    with pytest.raises(ValueError, match="no group holds both"):
        success(np.zeros(2), np.array([True, False]), ["a", "b"])
