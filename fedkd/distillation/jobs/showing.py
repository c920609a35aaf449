"""Students and teachers made ready to be drawn from: while training, and side by side at the end."""

from __future__ import annotations

import copy
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from diffusers import DiffusionPipeline

from fedkd.distillation.distil import Distilled
from fedkd.distillation.jobs.faculty import Faculty, slot_of
from fedkd.distillation.method import Method
from fedkd.distillation.progressive import Progressive
from fedkd.distillation.student import NAME, install_student
from fedkd.evaluation.contact_sheet import contact_sheet
from fedkd.evaluation.steps import STUDENT, TEACHER, UNGUIDED, Contender, Part, save_picture, scale_of, teacher_steps
from fedkd.models.pipeline import denoiser_of
from fedkd.models.sampling import sample
from fedkd.recipe import Recipe


class Sampler:
    """Draws a sheet from the student as it is, every `distillation.sample_every` steps."""

    def __init__(self, pipe: DiffusionPipeline, recipe: Recipe, run: Path, asked: list[tuple[str, str]]) -> None:
        self.pipe, self.recipe, self.run = pipe, recipe, run
        self.prompts = [prompt for _, prompt in asked]

    def __call__(self, step: int, method: Method) -> None:
        """RUN/samples/step-000200.png, if this is a step to draw at."""
        if step % self.recipe.distillation.sample_every:
            return
        drawing = method.drawing()
        steps = drawing.num_inference_steps
        if isinstance(method, Progressive):
            steps = method.steps  # of the present phase
        with self._student(method):
            before, self.pipe.scheduler = self.pipe.scheduler, copy.deepcopy(drawing.scheduler)
            try:
                images = sample(
                    self.pipe,
                    self.prompts,
                    seed=self.recipe.run.seed,
                    num_inference_steps=steps or self.recipe.model.num_inference_steps,
                    guidance_scale=drawing.guidance_scale,
                    batch_size=self.recipe.evaluation.batch_size,
                )
            finally:
                self.pipe.scheduler = before
        sheet = contact_sheet(images, columns=4, scale=scale_of(images))
        save_picture(sheet, self.run / "samples" / f"step-{step:06d}.png")

    @contextmanager
    def _student(self, method: Method) -> Iterator[None]:
        """The pipeline with the living student in it."""
        student, denoiser, slot = method.student, denoiser_of(self.pipe), slot_of(self.pipe)
        if not student.full:
            denoiser.set_adapter(NAME)
            yield
            return
        module = student.module
        setattr(self.pipe, slot, module if module.dtype == denoiser.dtype else copy.deepcopy(module).to(denoiser.dtype))
        try:
            yield
        finally:
            setattr(self.pipe, slot, denoiser)


@contextmanager
def installed(pipe: DiffusionPipeline, student: bytes) -> Iterator[DiffusionPipeline]:
    """`pipe` with a student's weights; afterwards bit for bit as it was."""
    denoiser = denoiser_of(pipe)
    before = {key: tensor.detach().clone() for key, tensor in denoiser.state_dict().items()}
    install_student(pipe, student)
    try:
        yield pipe
    finally:
        denoiser.load_state_dict(before)


def contenders(pipe: DiffusionPipeline, faculty: Faculty, done: Distilled, recipe: Recipe) -> list[Contender]:
    """Student, teacher, and the teacher without guidance, which is the stronger rival at very few steps.

    The student is asked for what its teachers draw; each teacher for its own concepts.
    """
    concepts = list(dict.fromkeys(concept for name in faculty.names for concept in faculty.concepts[name]))
    few, scheduler = done.drawing.num_inference_steps, done.drawing.scheduler

    @contextmanager
    def student(steps: int) -> Iterator[DiffusionPipeline]:
        with installed(pipe, done.stages.get(steps, done.student)):
            before, pipe.scheduler = pipe.scheduler, copy.deepcopy(scheduler)
            try:
                yield pipe
            finally:
                pipe.scheduler = before

    def teacher(name: str) -> Part:
        return Part(lambda steps: faculty.drawing(pipe, name), faculty.concepts[name])

    asked = {*recipe.evaluation.steps_compared, few} if few else teacher_steps(recipe)
    counts = sorted({*asked, *teacher_steps(recipe)})
    limit: Any = getattr(scheduler.config, "original_inference_steps", None)
    made_for = tuple(done.stages) or ((few,) if few else ())
    parts, guidance_scale = [teacher(name) for name in faculty.names], recipe.model.guidance_scale
    found = [
        Contender(STUDENT, [Part(student, concepts)], sorted(asked), done.drawing.guidance_scale, limit, made_for),
        Contender(TEACHER, parts, counts, guidance_scale),
    ]
    if few and guidance_scale != 1.0:
        found.append(Contender(UNGUIDED, parts, sorted(recipe.evaluation.steps_compared), 1.0))
    return found
