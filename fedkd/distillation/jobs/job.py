"""A distillation job: teachers from a recipe draw or are given pictures, a student is made, scored and reported."""

from __future__ import annotations

import shutil
from datetime import timedelta
from pathlib import Path
from typing import Any

import torch
from accelerate import PartialState
from datasets import Dataset
from diffusers import DiffusionPipeline
from omegaconf import OmegaConf

from fedkd import __version__
from fedkd.distillation.distil import Distilled, distil
from fedkd.distillation.jobs.clock import Clock, write_bytes
from fedkd.distillation.jobs.faculty import Faculty, Resolve, assemble, slot_of
from fedkd.distillation.jobs.lessons import check_source, learned_sets, sheet_prompts
from fedkd.distillation.jobs.showing import Sampler, contenders, installed
from fedkd.distillation.jobs.tracking import Tracker, check_tracker
from fedkd.distillation.jobs.view import Silent, View
from fedkd.distillation.student import is_full
from fedkd.distillation.teachers import BASE
from fedkd.evaluation.accuracy import judge
from fedkd.evaluation.distillation_report import write_distillation_report
from fedkd.evaluation.steps import Row, draw_sheets, score
from fedkd.models.adapter import diffusers_lora_bytes
from fedkd.models.pipeline import load_pipeline, save_pipeline
from fedkd.models.source import resolve_model
from fedkd.recipe import Recipe, save_recipe
from fedkd.training.loop import accelerator_for, is_main_process

STUDENT, LORA, CHECKPOINT = "student.safetensors", "pytorch_lora_weights.safetensors", "checkpoint"
PATIENCE = timedelta(days=1)  # processes wait for the main one while it draws and scores


def run_job(
    recipe: Recipe, run: Path, resolve: Resolve = resolve_model, *, view: View | None = None, command: str = ""
) -> dict[str, Any]:
    """Carry out `recipe` in the folder `run`, from wherever an earlier process stopped; returns the report.

    Every process of several calls it; the main one alone draws, writes and returns the report, the others
    return {}. Raises ValueError (TeacherError, DataError, ...) for what cannot be used, before any training.
    """
    clock = Clock(run)
    device = prepare_processes(recipe)
    view = view if view and is_main_process() else Silent()
    view.begin("load and check the teachers")
    check_tracker(recipe.run.tracker)
    check_source(recipe)
    if recipe.evaluation.classifier and recipe.prompts.template:
        judge(recipe.evaluation.classifier)
    pipe = load_pipeline(
        recipe.model.path,
        device=device,
        dtype=recipe.run.dtype,
        scheduler=recipe.model.scheduler,
        without=recipe.model.without,
    )
    faculty = assemble(recipe, pipe, resolve)
    if is_main_process() and not (run / "recipe.yaml").is_file():
        save_recipe(recipe, run / "recipe.yaml")
    sets = learned_sets(pipe, faculty, recipe, run, view)
    clock.lap("pictures")
    asked = sheet_prompts(recipe, faculty, sets)
    done = train_student(pipe, faculty, sets, recipe, run, view=view, clock=clock, asked=asked)
    report: dict[str, Any] = {}
    if is_main_process():
        write_bytes(run / STUDENT, done.student)
        rows, sheets = compare(pipe, faculty, done, recipe, run, view, asked)
        save_results(pipe, done, run)
        clock.lap("evaluation")
        report = compose(recipe, run, faculty, sets, done, rows=rows, sheets=sheets, clock=clock, command=command)
        write_distillation_report(report, run)
    wait()
    return report


def prepare_processes(recipe: Recipe) -> str:
    """Start what several processes need to work together; returns this process's device."""
    cpu = torch.device(recipe.run.device).type == "cpu"
    if not PartialState._shared_state:
        PartialState(cpu=cpu, timeout=PATIENCE)
    accelerator = accelerator_for(torch.device(recipe.run.device), recipe.distillation.mixed_precision)
    return recipe.run.device if accelerator.num_processes == 1 or cpu else str(accelerator.device)


def wait() -> None:
    """Until every process is here."""
    PartialState().wait_for_everyone()


def train_student(
    pipe: DiffusionPipeline,
    faculty: Faculty,
    sets: dict[str, Dataset],
    recipe: Recipe,
    run: Path,
    *,
    view: View,
    clock: Clock,
    asked: list[tuple[str, str]],
) -> Distilled:
    """Distil with progress, trackers, sample sheets and the clock; from the saved state, if there is one."""
    config = recipe.distillation
    view.begin(f"train the student ({config.method})")
    sampler = Sampler(pipe, recipe, run, asked)
    with Tracker(recipe, run) as tracker:

        def after_step(step: int, total: int, losses: dict[str, float]) -> None:
            view.losses(losses)
            view.progress(step, total)
            tracker.log(losses, step)
            if is_main_process() and step % config.save_every == 0:
                clock.lap("training")

        done = distil(
            pipe,
            sets,
            faculty.adapters,
            recipe,
            base_teaches=BASE in faculty.names,
            seed=recipe.run.seed,
            modules=faculty.modules,
            fixed=faculty.fixed,
            folder=run,
            after_step=after_step,
            watch=sampler if config.sample_every and is_main_process() else None,
        )
    clock.lap("training")
    for name, reason in done.left_out.items():
        view.say(f"teacher {name} has lambda 0: {reason}")
    return done


def compare(
    pipe: DiffusionPipeline,
    faculty: Faculty,
    done: Distilled,
    recipe: Recipe,
    run: Path,
    view: View,
    asked: list[tuple[str, str]],
) -> tuple[list[Row], list[dict[str, Any]]]:
    """Score student and teachers at each step count, and draw the sheets."""
    student, teacher, *others = contenders(pipe, faculty, done, recipe)
    rows: list[Row] = []
    if recipe.evaluation.classifier and recipe.prompts.template:
        for contender in (student, teacher, *others):
            view.begin(f"score the {contender.name}")
            rows += score(contender, recipe, seed=recipe.run.seed, progress=view.progress)
    view.begin("draw the sheets")
    sheets = draw_sheets(
        student,
        teacher,
        asked,
        run / "samples",
        seed=recipe.run.seed,
        batch_size=recipe.evaluation.batch_size,
        progress=view.progress,
    )
    return rows, [sheet | {"picture": f"samples/{sheet['picture']}"} for sheet in sheets]


def save_results(pipe: DiffusionPipeline, done: Distilled, run: Path) -> None:
    """Write the final student as a diffusers folder, and as a LoRA file where it is one."""
    for left_over in run.glob(f".{CHECKPOINT}.*.part"):  # of a process that was killed here
        shutil.rmtree(left_over, ignore_errors=True)
    with installed(pipe, done.student):
        before, pipe.scheduler = pipe.scheduler, done.drawing.scheduler
        try:
            save_pipeline(pipe, run / CHECKPOINT)
        finally:
            pipe.scheduler = before
    if not is_full(done.student):
        write_bytes(run / LORA, diffusers_lora_bytes(done.student, slot_of(pipe)))


def compose(
    recipe: Recipe,
    run: Path,
    faculty: Faculty,
    sets: dict[str, Dataset],
    done: Distilled,
    *,
    rows: list[Row],
    sheets: list[dict[str, Any]],
    clock: Clock,
    command: str,
) -> dict[str, Any]:
    """The report's figures."""
    teachers = [
        {
            "name": name,
            "origin": faculty.origin[name],
            "concepts": faculty.concepts[name],
            "pictures": len(sets.get(name, ())),
            "weight": done.teacher_weights.get(name, 0.0),
            "left_out": done.left_out.get(name),
        }
        for name in faculty.names
    ]
    return {
        "name": recipe.run.name,
        "description": recipe.description,
        "fedkd_version": __version__,
        "command": command,
        "started": clock.started,
        "method": recipe.distillation.method,
        "seconds": clock.seconds,
        "wall_seconds": sum(clock.seconds.values()),
        "pictures": sum(len(pictures) for pictures in sets.values()),
        "teachers": teachers,
        "steps": rows,
        "sheets": sheets,
        "samples": [f"samples/{path.name}" for path in sorted((run / "samples").glob("step-*.png"))],
        "loss": done.curves,
        "sampling": done.drawing.sampling(),
        "student": {"file": STUDENT, "checkpoint": CHECKPOINT, "lora": None if is_full(done.student) else LORA},
        "recipe": OmegaConf.to_container(OmegaConf.structured(recipe)),
    }
