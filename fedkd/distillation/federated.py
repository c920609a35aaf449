"""The cloud's step: one student from many edges, L = (1-gamma) L_task + gamma L_distill (EUCI Eqs. 5-7)."""

from __future__ import annotations

from functools import partial

import torch
from datasets import Dataset, concatenate_datasets
from diffusers import DiffusionPipeline
from torch.nn import functional as F

from fedkd.data.captions import prompts_for
from fedkd.data.sources import to_dataset
from fedkd.distillation.losses import distance, drawn, timestep_weight, total_loss
from fedkd.distillation.teachers import BASE, Teachers
from fedkd.models.adapter import (
    AdapterError,
    adapter_bytes,
    add_adapter,
    check_adapter,
    load_adapter,
    remove_adapters,
)
from fedkd.models.conditioning import Conditions, predict
from fedkd.models.latents import decode_latents
from fedkd.models.pipeline import denoiser_of
from fedkd.models.sampling import sample
from fedkd.recipe import DistillationConfig, Recipe
from fedkd.training.examples import Examples, encode_examples
from fedkd.training.finetune import picture_side
from fedkd.training.loop import Losses, Progress, step_generator, train
from fedkd.training.noise import NoiseSchedule


def draw_replay(pipe: DiffusionPipeline, recipe: Recipe, *, seed: int, progress: Progress | None = None) -> Dataset:
    """`distillation.replay` pictures that the base draws of what it knows, so that the student keeps it."""
    known, count = recipe.prompts.known, recipe.distillation.replay
    if not known or not count:
        return to_dataset([])
    each = -(-count // len(known))
    prompts = [text for value in known for text in prompts_for(recipe.prompts, value, each, seed)][:count]
    images = sample(
        pipe,
        prompts,
        seed=seed,
        num_inference_steps=recipe.model.num_inference_steps,
        guidance_scale=recipe.model.guidance_scale,
        progress=progress,
    )
    return to_dataset([{"image": i, "caption": p} for i, p in zip(images, prompts, strict=True)])


def distil(
    pipe: DiffusionPipeline,
    sets: dict[str, Dataset],
    adapters: dict[str, bytes],
    replay: Dataset,
    recipe: Recipe,
    *,
    seed: int,
    progress: Progress | None = None,
) -> tuple[bytes, dict[str, object]]:
    """Train a student adapter on D_C = union of `sets` and `replay`, taught by `adapters` on one base in memory.

    Returns the student's safetensors bytes and {"task", "distill": loss curves, "teacher_weights":
    {edge: mean lambda}, "left_out": {edge: reason}}. A teacher that cannot be loaded or is not finite
    is left out with the pictures it would have taught. Deterministic in its inputs and `seed`;
    `pipe` ends as it was. Raises ValueError when no teacher is left.
    """
    config, denoiser = recipe.distillation, denoiser_of(pipe)
    left_out: dict[str, str] = {}
    names = sorted(set(sets) & set(adapters))
    try:
        for name in list(names):
            try:
                check_adapter(adapters[name], denoiser)
                load_adapter(denoiser, adapters[name], name)
            except AdapterError as error:
                left_out[name] = str(error)
                names.remove(name)
        if not names:
            raise ValueError(f"no edge's adapter can teach: {left_out}")
        shares = [sets[name] for name in names] + ([replay] if len(replay) else [])
        source = torch.cat([torch.full((len(share),), i) for i, share in enumerate(shares)])
        examples = encode_examples(pipe, concatenate_datasets(shares), picture_side(shares[0]))
        schedule = NoiseSchedule.of(pipe.scheduler)
        members = [*names, BASE] if len(replay) else names
        teachers = Teachers(denoiser, members, schedule)
        teachers.set_weights(config, examples, source, sizes=[len(sets[name]) for name in names], seed=seed)
        parameters = add_adapter(denoiser, "student", config.lora, seed)
        loss_of = partial(
            student_losses,
            pipe,
            config,
            schedule,
            teachers=teachers,
            examples=examples,
            source=source,
            seed=seed,
        )
        history = train(parameters, loss_of, steps=config.steps, learning_rate=config.learning_rate, progress=progress)
        report: dict[str, object] = {
            "task": history["task"],
            "distill": history["distill"],
            "teacher_weights": teachers.mean_weights(source),
            "left_out": left_out,
        }
        return adapter_bytes(denoiser, "student"), report
    finally:
        remove_adapters(denoiser)


def student_losses(
    pipe: DiffusionPipeline,
    config: DistillationConfig,
    schedule: NoiseSchedule,
    step: int,
    *,
    teachers: Teachers,
    examples: Examples,
    source: torch.Tensor,
    seed: int,
) -> Losses:
    """{"loss", "task", "distill"} of one batch: EUCI Eqs. 5, 6 and 7, gradients to the student alone."""
    denoiser, generator = denoiser_of(pipe), step_generator(seed, step)
    rows, x0, conditions = examples.draw(config.batch_size, config.caption_dropout, generator)
    index = torch.randint(len(schedule), (len(x0),), generator=generator)
    noise = torch.randn(x0.shape, generator=generator).to(x0)
    x_t = schedule.add_noise(x0, noise, index)
    denoiser.set_adapter("student")
    output = predict(denoiser, x_t, schedule.timesteps[index].to(x0.device), conditions)
    task = F.mse_loss(output.float(), schedule.target(x0, noise, index).float())
    distill = torch.zeros(())
    if config.gamma > 0:
        student_x0 = schedule.predicted_x0(output, x_t, index)
        distill = distillation_loss(
            config, schedule, student_x0, x_t, index, conditions, rows, teachers, source, generator, pipe
        )
        # PEFT freezes an adapter that is not active, and a frozen leaf silently gets no gradient.
        denoiser.set_adapter("student")
    return {"loss": total_loss(task, distill.to(task), config.gamma), "task": task, "distill": distill}


def distillation_loss(
    config: DistillationConfig,
    schedule: NoiseSchedule,
    student_x0: torch.Tensor,
    x_t: torch.Tensor,
    index: torch.Tensor,
    conditions: Conditions,
    rows: torch.Tensor,
    teachers: Teachers,
    source: torch.Tensor,
    generator: torch.Generator,
    pipe: DiffusionPipeline,
) -> torch.Tensor:
    """sum_b lambda_b E[c(t') d(x̂_C, sg x̂_b)] (EUCI Eq. 6) as a scalar.

    `same`: the teacher sees the student's own x_t. `renoise`: it sees the student's prediction, noised
    again at a fresh t' (adversarial diffusion distillation's form).
    """
    if config.form == "renoise":
        index = torch.randint(len(schedule), (len(x_t),), generator=generator)
        noise = torch.randn(x_t.shape, generator=generator).to(x_t)
        x_t = schedule.add_noise(student_x0.detach(), noise, index)
    weights = teachers.weights_for(rows, source)
    if config.teachers == "sampled":
        weights = drawn(weights, generator)
    c = timestep_weight(schedule.snr(index), config.weighting, config.min_snr_k)
    total = student_x0.new_zeros(())
    for teacher, column in enumerate(weights.unbind(1)):
        asked = column.nonzero().flatten()
        if not len(asked):
            continue
        target = teachers.predicted_x0(teacher, x_t[asked], index[asked], conditions, asked)
        d = distance(
            student_x0[asked],
            target,
            config.distance,
            huber_delta=config.huber_delta,
            decode=partial(decode_latents, pipe),
        )
        total = total + (column[asked] * c[asked] * d).sum() / len(rows)
    return total
