"""`fedkd distill`: one student from many teachers, as a job that can be stopped and gone on with."""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from fedkd.cli.console import USER_ERROR, console
from fedkd.cli.recipes import check_kind

if TYPE_CHECKING:
    from fedkd.recipe import Recipe


def distill(
    recipe: Annotated[str, typer.Argument(help="A recipe's name, or a YAML file (see: fedkd recipes ls)")] = "",
    overrides: Annotated[
        list[str] | None,
        typer.Argument(metavar="[a.b=c]...", help="Overrides, e.g. distillation.steps=600", show_default=False),
    ] = None,
    resume: Annotated[
        str, typer.Option("--resume", metavar="RUN", help="Go on with an interrupted run: its folder or name")
    ] = "",
) -> None:
    """Distil a student from the recipe's teachers, compare the two at few steps, and write a report.

    The same command again goes on where it was stopped; a finished run is left alone.

    Example: fedkd distill distill-consistency

    Example: fedkd distill distill-consistency distillation.steps=600 run.name=lcm

    Example: fedkd recipes copy distill-consistency mine.yaml, edit it, then: fedkd distill mine.yaml

    Example: fedkd distill --resume runs/lcm

    On four GPUs: accelerate launch --multi_gpu --num_processes 4 -m fedkd.cli.main distill mine.yaml
    run.device=cuda

    In two processes without a GPU: torchrun --nproc-per-node 2 -m fedkd.cli.main distill mine.yaml
    """
    from fedkd.cli.run_folder import guard_with, shown

    if not first_process():
        console.quiet = True
    hint = ["run the same command again to start over"]
    with guard_with(hint):
        chosen, run = resumed(resume, recipe, overrides or []) if resume else begun(recipe, overrides or [])
        hint[0] = f"what is done is saved in {shown(run)}; run the same command again to go on"
        try:
            carry_out(chosen, run)
        except (ValueError, OSError):
            if first_process():
                raise
            raise SystemExit(USER_ERROR) from None  # the first process has said it


def first_process() -> bool:
    """Whether this is the only process, or the first of those that accelerate or torchrun started."""
    return os.environ.get("RANK", "0") == "0"


def begun(name: str, overrides: list[str]) -> tuple[Recipe, Path]:
    """The checked recipe and its run's folder, which is new or holds the same recipe."""
    from fedkd.recipe import RecipeError, load_recipe, recipe_names, run_dir

    if not name:
        known = [name for name in recipe_names() if load_recipe(name).kind == "distillation"]
        raise RecipeError(
            f"no recipe was given; give {'one of ' + ', '.join(known) if known else 'a YAML file'}, or --resume RUN"
        )
    recipe = load_recipe(name, overrides)
    check_kind(recipe, name, "distill")
    recipe = anchored(recipe)
    run = run_dir(recipe)
    saved = run / "recipe.yaml"
    if saved.is_file():
        check_same(recipe, saved)
    elif run.is_dir() and any(run.iterdir()):
        raise RecipeError(f"run.name={recipe.run.name}: {run} is in use by something else; give run.name=other")
    return recipe, run


def anchored(recipe: Recipe) -> Recipe:
    """The recipe with absolute paths, so that it can be gone on with from anywhere."""
    import dataclasses

    from fedkd.cli.run_folder import anchored as with_absolute_paths

    def absolute(path: str) -> str:
        place = Path(path).expanduser()
        return str(place.resolve()) if path and place.exists() else path

    teachers = [
        dataclasses.replace(t, adapter=absolute(t.adapter), checkpoint=absolute(t.checkpoint)) for t in recipe.teachers
    ]
    evaluation = dataclasses.replace(recipe.evaluation, classifier=absolute(recipe.evaluation.classifier))
    return dataclasses.replace(with_absolute_paths(recipe), teachers=teachers, evaluation=evaluation)


def check_same(recipe: Recipe, saved: Path) -> None:
    """RecipeError that names the first field in which the run's own recipe differs."""
    from omegaconf import OmegaConf

    from fedkd.cli.run_folder import shown
    from fedkd.recipe import RecipeError, load_recipe

    def flat(value: Any, name: str = "") -> dict[str, Any]:
        if isinstance(value, dict):
            return {k: v for key, item in value.items() for k, v in flat(item, f"{name}.{key}".lstrip(".")).items()}
        return {name: value}

    now, before = (flat(OmegaConf.to_container(OmegaConf.structured(r))) for r in (recipe, load_recipe(str(saved))))
    unlike = next((key for key in now | before if now.get(key) != before.get(key)), None)
    if unlike:
        raise RecipeError(
            f"{unlike}={now.get(unlike)!r} but {shown(saved.parent)} was begun with {before.get(unlike)!r}; "
            f"give run.name=other for a new run, or go on with that one: fedkd distill --resume {shown(saved.parent)}"
        )


def resumed(run: str, name: str, overrides: list[str]) -> tuple[Recipe, Path]:
    """The saved recipe and folder of an earlier run."""
    from fedkd.cli.run_folder import resumed as saved_run

    recipe, folder = saved_run(run, name, overrides)
    check_kind(recipe, run, "distill")
    return recipe, folder


def carry_out(recipe: Recipe, run: Path) -> None:
    """Do what is left of the job, show it, and print where the results are."""
    import sys

    from fedkd.cli.run_folder import shown

    if (run / "report.html").is_file() and (run / "student.safetensors").is_file():
        console.print(f"{shown(run)} is finished; for another run give run.name=other", markup=False, soft_wrap=True)
        if first_process():
            print(shown(run / "report.html"))
        return
    from fedkd.cli.job_view import JobView, summarise
    from fedkd.distillation.jobs.job import run_job

    with JobView(console) as view:
        report = run_job(recipe, run, resolver(recipe), view=view, command=" ".join(["fedkd", *sys.argv[1:]]))
    if report:
        summarise(console, report, run)
        print(shown(run / "report.html"))


def resolver(recipe: Recipe) -> Any:
    """A function from a checkpoint's text (shipped name, folder, registry NAME:VERSION, hub id) to where it is."""
    from fedkd.checkpoints.manifest import CheckpointError
    from fedkd.checkpoints.registry import Registry
    from fedkd.models.source import resolve_model
    from fedkd.recipe import registry_dir

    registry = Registry(registry_dir(recipe))

    def resolve(given: str) -> str:
        name = given.partition(":")[0]
        if ":" in given or ("/" not in given and name in registry.names()):
            try:
                return str(registry.resolve(given))
            except CheckpointError as error:
                raise CheckpointError(f"{error} (run.registry={registry.root})") from error
        return resolve_model(given)

    return resolve
