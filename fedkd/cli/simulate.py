"""`fedkd simulate`: the loop on one machine, from private images to a picture by edge and device."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from fedkd.cli.console import console, guard

if TYPE_CHECKING:
    from fedkd.recipe import Recipe

DEFECT = 1


def simulate(
    recipe: Annotated[str, typer.Argument(help="A recipe's name, or a YAML file (see: fedkd recipes ls)")] = "",
    overrides: Annotated[
        list[str] | None,
        typer.Argument(metavar="[a.b=c]...", help="Overrides, e.g. federation.rounds=3", show_default=False),
    ] = None,
    resume: Annotated[
        str, typer.Option("--resume", metavar="RUN", help="Go on with an interrupted run: its folder or name")
    ] = "",
) -> None:
    """Run a federation on this machine, serve what it learned, and write a report.

    Example: fedkd simulate quickstart

    Example: fedkd simulate quickstart distillation.gamma=0.3 run.name=softer

    Example: fedkd simulate --resume runs/quickstart
    """
    hint: list[str] = ["run the same command again to start over"]
    with guard_with(hint):
        chosen, run = resumed(resume, recipe, overrides or []) if resume else begun(recipe, overrides or [])
        hint[0] = f"what is done is saved; go on with: fedkd simulate --resume {shown(run)}"
        code = carry_out(chosen, run, resume=bool(resume))
    raise SystemExit(code)


def guard_with(hint: list[str]) -> Any:
    """`guard` whose advice after Ctrl-C may still change while it is open; SIGTERM counts as Ctrl-C."""
    import signal

    def stop(*_: object) -> None:
        raise KeyboardInterrupt

    @contextlib.contextmanager
    def guarded() -> Iterator[None]:
        before = signal.signal(signal.SIGTERM, stop)
        try:
            yield
        except KeyboardInterrupt:
            with guard(on_interrupt=hint[0]):
                raise
        except (ValueError, OSError):
            with guard():
                raise
        finally:
            signal.signal(signal.SIGTERM, before)

    return guarded()


def begun(name: str, overrides: list[str]) -> tuple[Recipe, Path]:
    """Validate the recipe and make the run's folder: RUN, or RUN-2, RUN-3, … when that is taken."""
    import dataclasses

    from fedkd.cli.recipes import check_kind
    from fedkd.recipe import RecipeError, load_recipe, recipe_names, run_dir, save_recipe

    if not name:
        raise RecipeError(f"no recipe was given; give one of {', '.join(recipe_names())}, or --resume RUN")
    recipe = load_recipe(name, overrides)
    check_kind(recipe, name, "simulate")
    recipe = anchored(recipe)
    from fedkd.models.pipeline import resolve_model  # heavy: after the mistakes that cost nothing to find

    resolve_model(recipe.model.path)
    if recipe.data.source == "folder":
        check_folder(recipe)
    first, number = recipe.run.name, 1
    while (run := run_dir(recipe)).exists() and any(run.iterdir()):
        number += 1
        recipe = dataclasses.replace(recipe, run=dataclasses.replace(recipe.run, name=f"{first}-{number}"))
    save_recipe(recipe, run / "recipe.yaml")
    if number > 1:
        console.print(f"runs/{first} exists already; this run is {recipe.run.name}", markup=False)
    return recipe, run


def anchored(recipe: Recipe) -> Recipe:
    """The recipe with absolute paths: Flower's processes work in folders of their own."""
    import dataclasses

    def whole(path: str) -> str:
        return str(Path(path).expanduser().resolve()) if path else ""

    def absolute(path: str) -> str:
        return whole(path) if path and Path(path).expanduser().exists() else path

    data = dataclasses.replace(recipe.data, path=absolute(recipe.data.path), source=absolute_source(recipe.data.source))
    run = dataclasses.replace(
        recipe.run,
        out=str(Path(recipe.run.out).expanduser().resolve()),
        registry=whole(recipe.run.registry),
        signing_key=whole(recipe.run.signing_key),
    )
    serving = dataclasses.replace(recipe.serving, trusted_keys=[whole(key) for key in recipe.serving.trusted_keys])
    shipped = recipe.model.path == recipe.model.name or not Path(recipe.model.path).expanduser().is_dir()
    model = recipe.model if shipped else dataclasses.replace(recipe.model, path=absolute(recipe.model.path))
    return dataclasses.replace(recipe, data=data, run=run, model=model, serving=serving)


def absolute_source(source: str) -> str:
    """A datasets name as it is, a local dataset's path made absolute."""
    path = Path(source).expanduser()
    return str(path.resolve()) if "/" in source and path.exists() else source


def check_folder(recipe: Recipe) -> None:
    """Read the private folder once before anything starts; name and count what will be skipped."""
    from fedkd.data.sources import load_folder

    dataset, skipped = load_folder(recipe.data.path, recipe.model.resolution)
    if skipped:
        names = "; ".join(skipped[:5]) + (" …" if len(skipped) > 5 else "")
        console.print(f"skipping {len(skipped)} of {len(dataset) + len(skipped)} pictures: {names}", markup=False)


def resumed(run: str, name: str, overrides: list[str]) -> tuple[Recipe, Path]:
    """The saved recipe and folder of an earlier run, given by folder or by name."""
    from fedkd.recipe import RecipeError, load_recipe

    if name or overrides:
        raise RecipeError("--resume takes the recipe that was saved with the run; leave recipe and overrides out")
    for folder in (Path(run).expanduser(), Path("runs") / run):
        if (folder / "recipe.yaml").is_file():
            folder = folder.resolve()
            return load_recipe(str(folder / "recipe.yaml")), folder
    raise RecipeError(f"--resume {run}: no run with a recipe.yaml there; give the run's folder, e.g. runs/quickstart")


def shown(path: Path) -> str:
    """A path as short as it can be said from here."""
    return str(path.relative_to(Path.cwd())) if path.is_relative_to(Path.cwd()) else str(path)


def carry_out(recipe: Recipe, run: Path, *, resume: bool) -> int:
    """Federate, show, report; returns the exit code."""
    import sys
    import time
    from datetime import UTC, datetime

    from fedkd.cli.live import RunView
    from fedkd.recipe import registry_dir
    from server.run_report import write_run_report
    from server.simulation import last_error, simulation
    from server.state import RunState
    from server.summary import compose

    started, clock = datetime.now(UTC).isoformat(timespec="seconds"), time.monotonic()
    registry = registry_dir(recipe) if recipe.run.registry else run / "registry"
    state = RunState(run)
    clockwork = state.finished(0, "clock") or {"started": started, "seconds": 0.0}
    facts = {"started": clockwork["started"], "command": " ".join(["fedkd", *sys.argv[1:]])}

    def report(**more: Any) -> Path:
        seconds = clockwork["seconds"] + time.monotonic() - clock
        state.finish(0, "clock", {**clockwork, "seconds": seconds})
        return write_run_report(run, **facts, wall_seconds=seconds, **more)

    try:
        with RunView(console, run, resume=resume) as view:
            if state.finished(recipe.federation.rounds, "redistribute") is None:
                with registry_for(recipe, registry) as (url, token), simulation(recipe, run, url, token) as flower:
                    while flower.running():
                        view.update()
                        time.sleep(0.2)
                    status = flower.status()
                view.update()
                if status != "finished:completed":
                    message, defect = last_error(run, run / "flower.log")
                    page = report(stopped=message)
                    advice = f"see {shown(run / 'flower.log')}; go on with: fedkd simulate --resume {shown(run)}"
                    typer.echo(f"error: {message} (report so far: {shown(page)}; {advice})", err=True)
                    return DEFECT if defect else 2
            from server.showcase import before_and_after, split_pictures

            made = compose(recipe, run, registry)
            paths = published(made, run, registry, state)
            view.phase("before and after")
            pictures = before_and_after(
                paths["base"][0], paths["student"][0], recipe, run, sampling=paths["student"][1]
            )
            view.phase("split inference on loopback")
            served, sampling = paths["served"]
            split = split_pictures(served, recipe, run, view.progress, sampling=sampling)
    except KeyboardInterrupt:
        report(stopped="interrupted")
        raise
    page = report(split=split, pictures=pictures)
    from fedkd.cli.live import summarise

    summarise(console, compose(recipe, run, registry), split)
    print(shown(page))
    if not split["bitwise_equal"]:
        typer.echo("error: a split picture differs from the unsplit pipeline; see the report", err=True)
        return DEFECT
    return 0


@contextlib.contextmanager
def registry_for(recipe: Recipe, root: Path) -> Iterator[tuple[str, str]]:
    """(URL, token) where the run's nodes pull checkpoints; served here on loopback unless the recipe names a place."""
    if recipe.federation.registry_url:
        yield "", ""
        return
    import secrets

    from fedkd.serving.background import in_background
    from fedkd.serving.registry_http import create_registry_app

    token = secrets.token_urlsafe(32)
    with in_background(create_registry_app(root, token)) as url:
        yield url, token


def published(report: dict[str, Any], run: Path, registry: Path, state: Any) -> dict[str, tuple[str, dict[str, Any]]]:
    """(folder, sampling) of the base, of the last student, and of the checkpoint that is served."""
    from fedkd.checkpoints.registry import Registry

    store = Registry(registry)
    base = state.finished(0, "base")["checkpoint"]
    students = [entry["checkpoint"] for entry in report["rounds"] if "checkpoint" in entry]
    served = f"{report['checkpoint']['name']}:{report['checkpoint']['version']}"
    references = {"base": base, "student": students[-1] if students else served, "served": served}
    return {who: (str(store.resolve(name)), store.manifest(name).sampling) for who, name in references.items()}
