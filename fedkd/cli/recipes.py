"""`fedkd recipes`: list, show, copy and check the recipes that runs are made of."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from fedkd.cli.console import guard

if TYPE_CHECKING:
    from fedkd.recipe import Recipe

VERBS = {  # what runs which kind
    "federation": "simulate",
    "distillation": "distill",
    "pretrain": "pretrain",
    "controlnet": "pretrain",
}

Overrides = Annotated[
    list[str] | None,
    typer.Argument(metavar="[a.b=c]...", help="Overrides, e.g. distillation.gamma=0.3", show_default=False),
]

recipes = typer.Typer(
    help="List, show, copy and check recipes: what a run is, in one YAML file.\n\n"
    "Example: fedkd recipes show quickstart",
    no_args_is_help=True,
    rich_markup_mode="rich",
)


@recipes.command("ls")
def list_recipes() -> None:
    """List the recipes that ship with fedkd.

    Example: fedkd recipes ls
    """
    from fedkd.recipe import load_recipe, recipe_names

    with guard():
        found = {name: load_recipe(name) for name in recipe_names()}
    width = max((len(name) for name in found), default=0)
    for name, recipe in found.items():
        print(f"{name:<{width}}  fedkd {VERBS[recipe.kind]} {name}  {recipe.description}".rstrip())


@recipes.command("show")
def show(
    name: Annotated[str, typer.Argument(help="A recipe's name, or a YAML file")],
    overrides: Overrides = None,
) -> None:
    """Print the resolved recipe as YAML, defaults and overrides included.

    Example: fedkd recipes show quickstart distillation.gamma=0.3
    """
    from fedkd.recipe import load_recipe, to_yaml

    with guard():
        print(to_yaml(load_recipe(name, overrides or [])), end="")


@recipes.command("validate")
def validate(
    name: Annotated[str, typer.Argument(help="A recipe's name, or a YAML file")],
    overrides: Overrides = None,
) -> None:
    """Check a recipe; say which key or value is wrong and what the nearest right one is.

    Example: fedkd recipes validate quickstart federation.rounds=3
    """
    from fedkd.recipe import load_recipe, recipe_digest

    with guard():
        recipe = load_recipe(name, overrides or [])
        print(f"{name}: valid, sha256:{recipe_digest(recipe)}")


@recipes.command("copy")
def copy(
    name: Annotated[str, typer.Argument(help="A shipped recipe's name, or a YAML file")],
    path: Annotated[str, typer.Argument(help="The file or folder to copy to [default: ./NAME.yaml]")] = "",
) -> None:
    """Copy a recipe to a file of your own to edit; nothing is ever overwritten.

    Example: fedkd recipes copy quickstart mine.yaml
    """
    from fedkd.recipe import RecipeError, find_recipe, load_recipe

    with guard():
        source = find_recipe(name)
        target = Path(path or source.name).expanduser()
        target = target / source.name if target.is_dir() else target
        if target.suffix not in {".yaml", ".yml"}:
            raise RecipeError(f"PATH={path} does not end in .yaml; give one that does, e.g. {target.name}.yaml")
        verb = VERBS[load_recipe(name).kind]
        try:
            target.parent.mkdir(parents=True, exist_ok=True)
            with target.open("x", encoding="utf-8") as stream:
                stream.write(source.read_text("utf-8"))
        except FileExistsError as error:
            raise RecipeError(f"PATH={target} exists already and is left alone; give another") from error
        print(f"copied to {target}; edit it, then run: fedkd {verb} {target}")


def check_kind(recipe: Recipe, name: str, verb: str) -> None:
    """RecipeError that names the right verb, when the recipe is for another than `fedkd VERB`.

    TrainingError when the recipe's tracker is not installed: better known before anything starts.
    """
    from fedkd.recipe import RecipeError

    right = VERBS[recipe.kind]
    if right != verb and (right, verb) != ("simulate", "federate"):
        raise RecipeError(
            f"recipe '{name}' has kind={recipe.kind}, which is not for `fedkd {verb}`; run: fedkd {right} {name}"
        )
    if recipe.run.tracker:
        from fedkd.distillation.jobs.tracking import check_tracker

        check_tracker(recipe.run.tracker)
