"""What the tests of distillation share: small pictures, adapters of random weights, and a method ready to teach."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache, partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from datasets import Dataset
from PIL import Image

from fedkd.data.sources import to_dataset
from fedkd.distillation.distil import METHODS
from fedkd.distillation.method import Lesson, Method
from fedkd.distillation.student import NAME, Student
from fedkd.distillation.teachers import BASE, Teachers
from fedkd.models.adapter import adapter_bytes, add_adapter, load_adapter, remove_adapters
from fedkd.models.conditioning import Conditions, predict
from fedkd.models.latents import decode_latents
from fedkd.models.pipeline import denoiser_of
from fedkd.recipe import LoraConfig, Recipe, load_recipe
from fedkd.training.examples import encode_examples
from fedkd.training.noise import NoiseSchedule

LORA = LoraConfig(rank=2, alpha=4, target_modules=["to_q", "to_k", "to_v", "to_out.0"])


def pictures(seed: int, count: int = 6) -> Dataset:
    """`count` pictures of random pixels with two captions in turn."""
    rng = np.random.default_rng(seed)
    return to_dataset(
        [
            {
                "image": Image.fromarray(rng.integers(0, 256, (32, 32, 3), dtype=np.uint8)),
                "caption": f"picture {i % 2}",
            }
            for i in range(count)
        ]
    )


def recipe(*overrides: str) -> Recipe:
    """A recipe of three steps; `overrides` of its distillation section, or of any with a dotted key."""
    small = ["steps=3", "batch_size=4", "lora.rank=2", "lora.target_modules=[to_q,to_v]"]
    small += ["progressive.start_steps=4", "outlier=1e6"]
    sections = ("distillation.", "model.", "run.", "finetune.")
    dotted = [o if o.startswith(sections) else f"distillation.{o}" for o in [*small, *overrides]]
    return load_recipe("quickstart", dotted)


def randomise(parameters: Any, seed: int, scale: float) -> None:
    """Gaussian weights, so that an adapter changes something."""
    generator = torch.Generator().manual_seed(seed)
    for parameter in parameters:
        parameter.data = torch.randn(parameter.shape, generator=generator) * scale


def random_adapter(denoiser: Any, seed: int, scale: float = 0.3) -> bytes:
    """An adapter of Gaussian weights for `denoiser`, which ends as it was; made once."""
    made = vars(denoiser).setdefault("adapters_of_tests", {})
    if (seed, scale) not in made:
        randomise(add_adapter(denoiser, "new", LORA, seed), seed, scale)
        made[seed, scale] = adapter_bytes(denoiser, "new")
        remove_adapters(denoiser)
    return made[seed, scale]


@contextmanager
def classroom(
    pipe: Any, chosen: Recipe, *, edges: int = 2, scheduler: Any = None, modules: dict[str, Any] | None = None
) -> Iterator[Method]:
    """The recipe's method with a student of random weights, `edges` adapters (edge-0, ...), the base, and uniform
    lambda over the edges."""
    denoiser, scheduler = denoiser_of(pipe), scheduler or pipe.scheduler
    adapters = {f"edge-{i}": random_adapter(denoiser, i) for i in range(edges)}
    try:
        student = Student(denoiser, chosen.distillation, 0)
        if not student.full:
            randomise(student.parameters, 7, 0.2)
        for name, data in adapters.items():
            load_adapter(denoiser, data, name)
        schedule = NoiseSchedule.of(scheduler)
        names = [*adapters, *(modules or {}), BASE]
        teachers = Teachers(denoiser, names, schedule, modules)
        share = torch.ones(len(names))
        share[-1] = 0
        teachers.table = share[None] / share.sum()
        examples = encode_examples(pipe, pictures(0), 32)
        lesson = Lesson(
            config=chosen.distillation,
            student=student,
            teachers=teachers,
            examples=examples,
            schedule=schedule,
            scheduler=scheduler,
            guidance_scale=chosen.model.guidance_scale,
            decode=partial(decode_latents, pipe),
            kept=torch.arange(len(examples)),
        )
        torch.manual_seed(0)
        yield METHODS[chosen.distillation.method](lesson)
    finally:
        remove_adapters(denoiser)


def alone(denoiser: Any, name: str, x_t: torch.Tensor, timesteps: torch.Tensor, conditions: Conditions) -> torch.Tensor:
    """What one adapter (or the base) says of a whole batch, asked the plain way: `set_adapter` and a forward."""
    active = denoiser.active_adapters()
    if name == BASE:
        denoiser.disable_adapters()
    else:
        denoiser.set_adapter(name)
    try:
        with torch.no_grad():
            return predict(denoiser, x_t, timesteps, conditions)
    finally:
        denoiser.enable_adapters()
        denoiser.set_adapter(active)


def student_alone(method: Method, x_t: torch.Tensor, timesteps: torch.Tensor, conditions: Conditions) -> torch.Tensor:
    """The student's own raw output, with gradients, asked the plain way."""
    student = method.student
    if not student.full:
        student.denoiser.set_adapter(NAME)
    return predict(student.module, x_t, timesteps, conditions)


def levels(scheduler: Any, index: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """(sqrt ᾱ, sqrt(1-ᾱ)), each (B, 1, 1, 1), from the scheduler's own table."""
    cumprod = scheduler.alphas_cumprod[index].view(-1, 1, 1, 1)
    return cumprod**0.5, (1 - cumprod) ** 0.5


def x0_of_v(scheduler: Any, output: torch.Tensor, x_t: torch.Tensor, index: torch.Tensor) -> torch.Tensor:
    """x̂ from a v-prediction."""
    alpha, sigma = levels(scheduler, index)
    return alpha * x_t - sigma * output


def gradient(method: Method, loss: torch.Tensor) -> torch.Tensor:
    """The gradient of `loss` on the student's parameters as one vector."""
    found = torch.autograd.grad(loss, method.student.parameters, retain_graph=True, allow_unused=True)
    zipped = zip(found, method.student.parameters, strict=True)
    return torch.cat([(torch.zeros_like(p) if g is None else g).flatten() for g, p in zipped])


@cache
def family(name: str) -> Any:
    """A random-weight pipeline of a family: sd, sdxl or sd3; leave it as it was."""
    from tests.conftest import build_pipeline
    from tests.models.families import sd3, sdxl

    torch.manual_seed(0)
    with tempfile.TemporaryDirectory() as folder:
        pipe = {"sd": build_pipeline, "sdxl": sdxl, "sd3": sd3}[name](Path(folder))
    pipe.set_progress_bar_config(disable=True)
    for component in pipe.components.values():
        if isinstance(component, torch.nn.Module):
            component.requires_grad_(False).eval()
    return pipe
