"""Captioned-image fine-tuning with LoRA: an edge on D_E^b, a user on its own pictures (EUCI Fig. 2 steps 1 to 4)."""

from __future__ import annotations

import torch
from datasets import Dataset
from diffusers import DiffusionPipeline
from torch.nn import functional as F

from fedkd.models.adapter import adapter_bytes, add_adapter, remove_adapters
from fedkd.models.conditioning import Conditions, predict
from fedkd.models.pipeline import denoiser_of
from fedkd.recipe import FinetuneConfig
from fedkd.training.examples import encode_examples
from fedkd.training.loop import Losses, Progress, step_generator, train
from fedkd.training.noise import NoiseSchedule
from fedkd.training.private import Spent, spent_by, train_privately


def finetune(
    pipe: DiffusionPipeline,
    dataset: Dataset,
    config: FinetuneConfig,
    *,
    seed: int,
    resolution: int | None = None,
    progress: Progress | None = None,
) -> tuple[bytes, dict[str, list[float]]]:
    """Train an adapter on captioned images; returns its safetensors bytes and {"loss": [...]}.

    The pipeline is left as it was. Minimises the model's own prediction loss, which is EUCI Eq. 5 for
    epsilon-prediction. With `config.dp.epsilon` the steps are differentially private (see `privacy_of`) and do not
    follow `seed`. Raises TrainingError when the loss is not finite.
    """
    denoiser = denoiser_of(pipe)
    schedule = NoiseSchedule.of(pipe.scheduler)
    examples = encode_examples(pipe, dataset, resolution or picture_side(dataset))
    spent = privacy_of(config, len(dataset))
    parameters = add_adapter(denoiser, "edge", config.lora, seed)

    def loss(x0: torch.Tensor, conditions: Conditions, generator: torch.Generator) -> torch.Tensor:
        index = torch.randint(len(schedule), (len(x0),), generator=generator)
        noise = torch.randn(x0.shape, generator=generator).to(x0)
        output = predict(
            denoiser,
            schedule.add_noise(x0, noise, index),
            schedule.timesteps[index].to(x0.device),
            conditions,
        )
        return F.mse_loss(output.float(), schedule.target(x0, noise, index).float())

    def loss_of(step: int) -> Losses:
        generator = step_generator(seed, step)
        _, x0, conditions = examples.draw(config.batch_size, config.caption_dropout, generator)
        return {"loss": loss(x0, conditions, generator)}

    def loss_of_rows(rows: torch.Tensor, generator: torch.Generator) -> torch.Tensor:
        empty = torch.rand(len(rows), generator=generator) < config.caption_dropout
        return loss(examples.latents[rows], examples.told(rows, empty), generator)

    denoiser.train()
    try:
        if spent is None:
            rate = config.learning_rate
            history = train(parameters, loss_of, steps=config.steps, learning_rate=rate, progress=progress)
        else:
            history = train_privately(
                denoiser,
                parameters,
                loss_of_rows,
                rows=len(examples),
                batch_size=config.batch_size,
                steps=config.steps,
                learning_rate=config.learning_rate,
                noise_multiplier=spent.noise_multiplier,
                max_grad_norm=config.dp.max_grad_norm,
                progress=progress,
            )
        return adapter_bytes(denoiser, "edge"), history
    finally:
        denoiser.eval()
        remove_adapters(denoiser)


def privacy_of(config: FinetuneConfig, rows: int) -> Spent | None:
    """What fine-tuning on `rows` pictures costs in privacy; None when the recipe does not ask for any."""
    return spent_by(config.dp, rows=rows, batch_size=config.batch_size, steps=config.steps)


def picture_side(dataset: Dataset) -> int:
    """The side in pixels of the dataset's (square) pictures."""
    return int(dataset[0]["image"].width)
