"""The folder of a run: begun from a recipe, or found again to go on; what `simulate` and `federate` share first."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

from fedkd.cli.console import console, guard

if TYPE_CHECKING:
    from fedkd.recipe import Recipe


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


def begun(name: str, overrides: list[str], verb: str = "simulate") -> tuple[Recipe, Path]:
    """Validate the recipe and make the run's folder: RUN, or RUN-2, RUN-3, … when that is taken."""
    import dataclasses

    from fedkd.cli.recipes import check_kind
    from fedkd.recipe import RecipeError, load_recipe, recipe_names, run_dir, save_recipe

    if not name:
        raise RecipeError(f"no recipe was given; give one of {', '.join(recipe_names())}, or --resume RUN")
    recipe = load_recipe(name, overrides)
    check_kind(recipe, name, verb)
    recipe = anchored(recipe)
    from fedkd.models.source import resolve_model

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
