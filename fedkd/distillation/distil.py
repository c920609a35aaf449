"""One student from many teachers: pictures D_C, adapters on one base, and the recipe's method, put together."""

from __future__ import annotations

from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import torch
from datasets import Dataset, concatenate_datasets
from diffusers import DiffusionPipeline

from fedkd.distillation.adversarial import Adversarial
from fedkd.distillation.consistency import Consistency
from fedkd.distillation.course import AfterStep, Course, Curves, Watch
from fedkd.distillation.federated import Federated
from fedkd.distillation.method import Drawing, Lesson, Method
from fedkd.distillation.progressive import Progressive
from fedkd.distillation.student import Student
from fedkd.distillation.teachers import BASE, Teachers
from fedkd.distillation.weights import set_weights
from fedkd.models.adapter import AdapterError, check_adapter, load_adapter, remove_adapters
from fedkd.models.latents import decode_latents
from fedkd.models.pipeline import denoiser_of
from fedkd.recipe import Recipe
from fedkd.training.examples import encode_examples
from fedkd.training.finetune import picture_side
from fedkd.training.noise import NoiseSchedule

METHODS: dict[str, type[Method]] = {
    "federated": Federated,
    "progressive": Progressive,
    "adversarial": Adversarial,
    "consistency": Consistency,
}
UNKNOWN = ""  # the set of pictures that no teacher drew


@dataclass
class Distilled:
    """What came of it. `student`: safetensors bytes; `drawing`: how to draw from it."""

    student: bytes
    drawing: Drawing
    curves: Curves
    teacher_weights: dict[str, float]  # mean lambda over D_C
    left_out: dict[str, str] = field(default_factory=dict)  # {teacher: why its lambda is 0}
    stages: dict[int, bytes] = field(default_factory=dict)  # students made for more steps, by step count


def distil(
    pipe: DiffusionPipeline,
    sets: dict[str, Dataset],
    adapters: dict[str, bytes],
    recipe: Recipe,
    *,
    seed: int,
    modules: dict[str, Any] | None = None,
    fixed: dict[str, float] | None = None,
    base_teaches: bool = False,
    distrusted: dict[str, str] | None = None,
    folder: Path | None = None,
    after_step: AfterStep | None = None,
    watch: Watch | None = None,
) -> Distilled:
    """Train a student on the union D_C of `sets`, taught by `adapters` and whole `modules` on one base.

    `sets` are captioned pictures by the teacher who drew them: BASE for the base's own (replay), UNKNOWN
    for pictures from elsewhere. An adapter that does not fit or is not finite is left out with the
    pictures it would have taught; one that is worse than the base on its own held-out pictures keeps
    them and gets lambda 0. Deterministic in its inputs and `seed`; `pipe` ends as it was. `base_teaches`
    counts BASE among the teachers of a global lambda; `distrusted` {teacher: reason} have lambda 0. With a
    `folder` a killed run is gone on with. `watch` is shown the method after each step. Raises ValueError when
    no teacher is left.
    """
    config, denoiser = recipe.distillation, denoiser_of(pipe)
    modules, left_out = dict(modules or {}), {}
    device = pipe.device
    try:
        student = Student(denoiser, config, seed)
        if config.gradient_checkpointing:
            student.module.enable_gradient_checkpointing()
        names = sorted(set(adapters) | set(modules))
        for name in sorted(adapters):
            try:
                check_adapter(adapters[name], denoiser)
                load_adapter(denoiser, adapters[name], name)
            except AdapterError as error:
                left_out[name] = str(error)
                names.remove(name)
        if not names and (left_out or BASE not in sets):
            raise ValueError(f"no teacher's adapter can be used: {left_out}")
        if BASE in sets:
            names.append(BASE)
        shares = {name: pictures for name, pictures in sets.items() if name not in left_out and len(pictures)}
        if not shares:
            raise ValueError("there are no pictures to learn from; give data or let the teachers draw some")
        places = [names.index(name) if name != UNKNOWN else -1 for name in shares]
        source = torch.cat([torch.full((len(s),), i) for i, s in zip(places, shares.values(), strict=True)])
        examples = encode_examples(
            pipe, concatenate_datasets(list(shares.values())), picture_side(next(iter(shares.values())))
        )
        schedule = NoiseSchedule.of(pipe.scheduler, device)
        teachers = Teachers(denoiser, names, schedule, modules)
        kept, held_out = split([len(s) for s in shares.values()], config.held_out, seed)
        left_out |= set_weights(
            teachers,
            config,
            examples,
            source,
            held_out=held_out,
            fixed=fixed,
            base_teaches=base_teaches or names == [BASE],
            distrusted=distrusted,
            seed=seed,
        )
        lesson = Lesson(
            config=config,
            student=student,
            teachers=teachers,
            examples=examples,
            schedule=schedule,
            scheduler=pipe.scheduler,
            guidance_scale=recipe.model.guidance_scale,
            decode=partial(decode_latents, pipe),
            kept=kept,
        )
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)  # the discriminator's first weights
            method = METHODS[config.method](lesson)
        course = Course(method, seed, folder, after_step, watch)
        curves = course.run()
        weights = teachers.mean_weights()
        return Distilled(student.to_bytes(), method.drawing(), curves, weights, left_out, course.stages)
    finally:
        if config.gradient_checkpointing:
            denoiser.disable_gradient_checkpointing()
        remove_adapters(denoiser)


def split(sizes: list[int], share: float, seed: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Indices (kept, held out) of pictures that lie set after set; a set of fewer than four is kept whole."""
    generator = torch.Generator("cpu").manual_seed(seed)
    kept, held_out, start = [], [], 0
    for size in sizes:
        order = torch.randperm(size, generator=generator) + start
        count = max(1, round(size * share)) if share and size >= 4 else 0
        held_out.append(order[:count])
        kept.append(order[count:])
        start += size
    return torch.cat(kept).sort().values, torch.cat(held_out).sort().values
