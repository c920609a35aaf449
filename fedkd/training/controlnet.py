"""Training a ControlNet (Zhang, Rao and Agrawala 2023) beside a frozen base model, on conditions of its own data."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from datasets import Dataset
from diffusers import ControlNetModel
from diffusers.training_utils import EMAModel
from torch.nn import functional as F

from fedkd.data.condition_maps import EXTRACTORS
from fedkd.models.conditioning import predict
from fedkd.models.control import ControlledUNet, control_pixels
from fedkd.recipe import Recipe
from fedkd.training.examples import encode_examples
from fedkd.training.loop import Losses, Progress, step_generator
from fedkd.training.noise import NoiseSchedule
from fedkd.training.pretrain import train_modules


def new_controlnet(unet: Any, recipe: Recipe) -> ControlNetModel:
    """A ControlNet that starts as a copy of `unet`'s encoder and changes nothing yet, seeded by `run.seed`.

    ValueError when its condition would not come out at the size of the latents.
    """
    config, side = recipe.controlnet, unet.config.sample_size
    halved = recipe.model.resolution // 2 ** (len(config.embedding_channels) - 1)
    if halved != side:
        raise ValueError(
            f"controlnet.embedding_channels={list(config.embedding_channels)} bring {recipe.model.resolution} pixels "
            f"to {halved}, the latents have {side}; give one entry more or fewer"
        )
    torch.manual_seed(recipe.run.seed)
    return ControlNetModel.from_unet(unet, conditioning_embedding_out_channels=tuple(config.embedding_channels))


def train_controlnet(
    pipe: Any, images: Dataset, recipe: Recipe, folder: Path, progress: Progress | None = None
) -> ControlNetModel:
    """A ControlNet for `pipe` on the model's own prediction target; every other weight stays as it is.

    The condition of each picture of `images` is extracted from it (`controlnet.condition`), at the picture's size.
    """
    config, schedule = recipe.controlnet, NoiseSchedule.of(pipe.scheduler)
    examples = encode_examples(pipe, images, recipe.model.resolution)
    extract, size = EXTRACTORS[config.condition], (recipe.model.resolution,) * 2
    control = torch.cat([control_pixels(extract(image.resize(size)), size) for image in images["image"]])
    net = new_controlnet(pipe.unet, recipe)
    both = ControlledUNet(pipe.unet, net)

    def loss_of(step: int) -> Losses:
        generator = step_generator(recipe.run.seed, step)
        rows, x0, told = examples.draw(config.batch_size, config.caption_dropout, generator)
        index = torch.randint(len(schedule), (len(rows),), generator=generator)
        noise = torch.randn(x0.shape, generator=generator)
        told |= {"control_image": control[rows]}
        output = predict(both, schedule.add_noise(x0, noise, index), index, told)
        return {"loss": F.mse_loss(output, schedule.target(x0, noise, index))}

    train_modules(
        "controlnet",
        {"controlnet": net},
        loss_of,
        folder=folder,
        steps=config.steps,
        learning_rate=config.learning_rate,
        save_every=config.save_every,
        ema=EMAModel(list(net.parameters()), decay=config.ema_decay, use_ema_warmup=True, power=0.8),
        progress=progress,
    )
    return net
