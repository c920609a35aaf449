"""Pretraining goes on where it stopped, bit for bit, and its tokenizer gives each caption word one token."""

from pathlib import Path
from typing import Any

import torch

from fedkd.data.digits import coloured_digits
from fedkd.data.sources import to_dataset
from fedkd.recipe import Recipe, load_recipe
from fedkd.training.pretrain import train_denoiser, train_vae
from fedkd.training.tiny import tiny_pipeline


def recipe(*overrides: str) -> Recipe:
    small = ["pretrain.save_every=2", "pretrain.batch_size=4", "pretrain.vae_channels=[8,8,8]"]
    return load_recipe("tiny-sd", [*small, "pretrain.unet_channels=[16,32]", *overrides])


def trained(folder: Path, interrupted: bool) -> dict[str, Any]:
    folder.mkdir()
    images = to_dataset(coloured_digits("base", 32, seed=0)[:12])
    config = recipe("pretrain.vae_steps=4", "pretrain.steps=4")
    if interrupted:
        pipe = tiny_pipeline(config)
        train_vae(pipe, images, config, folder)
        stopped = [0]

        def stop(done: int, total: int) -> None:
            stopped[0] = done
            if done == 3:
                raise KeyboardInterrupt

        try:
            train_denoiser(pipe, images, config, folder, stop)
        except KeyboardInterrupt:
            assert stopped[0] == 3
    pipe = tiny_pipeline(config)
    train_vae(pipe, images, config, folder)
    train_denoiser(pipe, images, config, folder)
    return {"vae": pipe.vae.state_dict(), "unet": pipe.unet.state_dict(), "text": pipe.text_encoder.state_dict()}


def test_an_interrupted_training_ends_with_the_same_weights(tmp_path: Path) -> None:
    torch.set_num_threads(1)
    whole, resumed = trained(tmp_path / "whole", False), trained(tmp_path / "resumed", True)
    for name, state in whole.items():
        assert all(torch.equal(value, resumed[name][key]) for key, value in state.items()), name


def test_each_caption_word_is_one_token_and_other_text_still_has_some() -> None:
    tokenizer = tiny_pipeline(recipe()).tokenizer
    ids = tokenizer("a red seven on a blue background")["input_ids"]
    assert len(ids) == 7 + 2
    assert len(tokenizer("zebra!")["input_ids"]) > 3
