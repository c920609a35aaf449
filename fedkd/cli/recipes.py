"""`fedkd recipes`: list, show and check the recipes that runs are made of."""

from __future__ import annotations

from typing import Annotated

import typer

from fedkd.cli.console import guard

Overrides = Annotated[
    list[str] | None,
    typer.Argument(metavar="[a.b=c]...", help="Overrides, e.g. distillation.gamma=0.3", show_default=False),
]

recipes = typer.Typer(
    help="List, show and check recipes: what a run is, in one YAML file.\n\n"
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
        verb = "pretrain" if recipe.kind == "pretrain" else "simulate"
        print(f"{name:<{width}}  fedkd {verb} {name}  {recipe.description}".rstrip())


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
