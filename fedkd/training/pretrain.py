"""Training a small Stable Diffusion model from nothing: VAE, then UNet and text encoder together."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import torch
from datasets import Dataset
from diffusers import StableDiffusionPipeline
from diffusers.training_utils import EMAModel
from torch.nn import functional as F

from fedkd.models.latents import encode_images, to_pixels
from fedkd.recipe import Recipe
from fedkd.training.loop import Losses, Progress, new_optimizer, step_generator, train
from fedkd.training.noise import NoiseSchedule
from fedkd.training.state import (
    ema_tensors,
    load_state,
    optimizer_tensors,
    restore_ema,
    restore_optimizer,
    save_state,
)


def train_modules(
    name: str,
    models: dict[str, torch.nn.Module],
    loss_of: Callable[[int], Losses],
    *,
    folder: Path,
    steps: int,
    learning_rate: float,
    save_every: int,
    ema: EMAModel | None,
    progress: Progress | None,
) -> None:
    """Train every weight of `models` (by name) on `loss_of`, resumably; they end frozen, with `ema`'s weights.

    The state lies in `folder`/NAME.state.safetensors every `save_every` steps.
    """
    parameters = [p for m in models.values() for p in m.parameters()]
    for parameter in parameters:
        parameter.requires_grad_(True)
    optimizer = new_optimizer(parameters, learning_rate)
    path = folder / f"{name}.state.safetensors"
    first, found = 0, load_state(path)
    if found is not None:
        first, tensors = found[0]["step"] + 1, found[1]
        for key, module in models.items():
            prefix = f"{key}."
            module.load_state_dict({k.removeprefix(prefix): t for k, t in tensors.items() if k.startswith(prefix)})
        restore_optimizer(optimizer, tensors)
        restore_ema(ema, tensors, first)

    def after_step(step: int, _: dict[str, float]) -> None:
        if ema:
            ema.step(parameters)
        if (step + 1) % save_every == 0 or step + 1 == steps:
            weights = {f"{key}.{n}": t for key, m in models.items() for n, t in m.state_dict().items()}
            save_state(path, {"step": step}, weights | optimizer_tensors(optimizer) | ema_tensors(ema))

    for module in models.values():
        module.train()
    train(
        parameters,
        loss_of,
        steps=steps,
        learning_rate=learning_rate,
        first_step=first,
        optimizer=optimizer,
        after_step=after_step,
        progress=progress,
    )
    if ema:
        ema.copy_to(parameters)
    for module in models.values():
        module.eval().requires_grad_(False)


def train_vae(
    pipe: StableDiffusionPipeline,
    images: Dataset,
    recipe: Recipe,
    folder: Path,
    progress: Progress | None = None,
) -> None:
    """L1 + L2 reconstruction with a small KL term; ends by setting the scaling factor to unit variance."""
    pixels, vae, config = to_pixels(list(images["image"]), recipe.model.resolution), pipe.vae, recipe.pretrain

    def loss_of(step: int) -> Losses:
        generator = step_generator(recipe.run.seed, step)
        real = pixels[torch.randint(len(pixels), (config.batch_size,), generator=generator)]
        posterior = vae.encode(real).latent_dist
        noise = torch.randn(posterior.mean.shape, generator=generator)
        decoded = vae.decode(posterior.mean + posterior.std * noise).sample
        reconstruction = F.mse_loss(decoded, real) + 0.5 * F.l1_loss(decoded, real)
        return {"loss": reconstruction + 1e-4 * posterior.kl().mean() / posterior.mean[0].numel()}

    train_modules(
        "vae",
        {"vae": vae},
        loss_of,
        folder=folder,
        steps=config.vae_steps,
        learning_rate=config.vae_learning_rate,
        save_every=config.save_every,
        ema=None,
        progress=progress,
    )
    vae.register_to_config(scaling_factor=1.0)
    latents = encode_images(pipe, list(images["image"]), recipe.model.resolution)
    vae.register_to_config(scaling_factor=round(1 / float(latents.std()), 4))


def train_denoiser(
    pipe: StableDiffusionPipeline,
    images: Dataset,
    recipe: Recipe,
    folder: Path,
    progress: Progress | None = None,
) -> None:
    """UNet and text encoder together on the model's own prediction target, with EMA and caption dropout."""
    config, schedule = recipe.pretrain, NoiseSchedule.of(pipe.scheduler)
    x0_all = encode_images(pipe, list(images["image"]), recipe.model.resolution)
    captions = [*images["caption"], ""]
    ids = pipe.tokenizer(
        captions,
        padding="max_length",
        max_length=pipe.tokenizer.model_max_length,
        truncation=True,
        return_tensors="pt",
    ).input_ids

    def loss_of(step: int) -> Losses:
        generator = step_generator(recipe.run.seed, step)
        rows = torch.randint(len(x0_all), (config.batch_size,), generator=generator)
        empty = torch.rand(len(rows), generator=generator) < config.caption_dropout
        hidden = pipe.text_encoder(ids[torch.where(empty, len(ids) - 1, rows)])[0]
        x0, index = x0_all[rows], torch.randint(len(schedule), (len(rows),), generator=generator)
        noise = torch.randn(x0.shape, generator=generator)
        output = pipe.unet(schedule.add_noise(x0, noise, index), index, encoder_hidden_states=hidden).sample
        return {"loss": F.mse_loss(output, schedule.target(x0, noise, index))}

    models = {"unet": pipe.unet, "text_encoder": pipe.text_encoder}
    ema = EMAModel(
        [p for m in models.values() for p in m.parameters()],
        decay=config.ema_decay,
        use_ema_warmup=True,
        power=0.8,
    )
    train_modules(
        "denoiser",
        models,
        loss_of,
        folder=folder,
        steps=config.steps,
        learning_rate=config.learning_rate,
        save_every=config.save_every,
        ema=ema,
        progress=progress,
    )
