"""Recipes from YAML files and command-line overrides, validated; and back to YAML."""

from __future__ import annotations

import dataclasses
import hashlib
import os
from pathlib import Path
from typing import Any

from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from fedkd.recipe.rules import RecipeError, check_values, nearest
from fedkd.recipe.sections import Recipe, TeacherConfig

RECIPES_DIR = Path(__file__).resolve().parents[2] / "recipes"


def recipe_names() -> list[str]:
    """Names of the recipes that ship with fedkd."""
    return sorted(path.stem for path in RECIPES_DIR.glob("*.yaml"))


def find_recipe(name: str) -> Path:
    """The file of a shipped recipe's name, or of a path to a YAML file; RecipeError if there is none."""
    path = Path(name).expanduser()
    if path.suffix in {".yaml", ".yml"}:
        if path.is_file():
            return path
        raise RecipeError(f"no recipe file at '{name}'; give an existing YAML file or a name from `fedkd recipes ls`")
    shipped = RECIPES_DIR / f"{name}.yaml"
    if shipped.is_file():
        return shipped
    raise RecipeError(f"no recipe named '{name}'; {nearest(name, recipe_names())}")


def _check_keys(given: Any, schema: type, prefix: str = "") -> None:
    """Name the nearest right key for each key that the dataclass `schema` does not have."""
    if not isinstance(given, dict):
        raise RecipeError(f"'{prefix.rstrip('.') or 'the recipe'}' must be a mapping, not {given!r}")
    fields = {f.name: f for f in dataclasses.fields(schema)}
    for key, value in given.items():
        if key not in fields:
            hint = nearest(str(key), [prefix + name for name in fields] if "." in str(key) else list(fields))
            raise RecipeError(f"unknown key '{prefix}{key}'; {hint}")
        if schema is Recipe and key == "teachers":
            for place, teacher in enumerate(value if isinstance(value, list) else []):
                _check_keys(teacher, TeacherConfig, f"teachers[{place}].")
        factory = fields[key].default_factory
        if isinstance(factory, type) and dataclasses.is_dataclass(factory):
            _check_keys(value, factory, f"{prefix}{key}.")


def _parse_overrides(overrides: list[str]) -> DictConfig:
    for item in overrides:
        if "=" not in item:
            raise RecipeError(f"override '{item}' has no '='; write it as section.key=value, e.g. run.seed=1")
    # `a.b=` means the empty text, which OmegaConf would read as null.
    quoted = [item + "''" if item.endswith("=") else item for item in overrides]
    try:
        return OmegaConf.from_dotlist(quoted)
    except Exception as error:
        raise RecipeError(f"cannot read the overrides {overrides}: {error}") from error


def load_recipe(name: str, overrides: list[str] | tuple[str, ...] = ()) -> Recipe:
    """Load a recipe by name or file, apply `a.b=c` overrides and validate it.

    Raises RecipeError that names the field, the value and the nearest right one.
    """
    path = find_recipe(name)
    try:
        raw = OmegaConf.load(path)
    except Exception as error:
        raise RecipeError(f"'{path}' is not readable YAML: {' '.join(str(error).split())}") from error
    if not isinstance(raw, DictConfig):
        raise RecipeError(f"'{path}' is a list; a recipe is a mapping of sections such as model: and data:")
    given = OmegaConf.merge(raw, _parse_overrides(list(overrides)))
    _check_keys(OmegaConf.to_container(given), Recipe)
    try:
        merged = OmegaConf.merge(OmegaConf.structured(Recipe), given)
        recipe = OmegaConf.to_object(merged)
    except OmegaConfBaseException as error:
        key = getattr(error, "full_key", None) or "recipe"
        raise RecipeError(f"{key}: {str(error).splitlines()[0]}") from error
    assert isinstance(recipe, Recipe)
    check_values(recipe)
    return recipe


def to_yaml(recipe: Recipe) -> str:
    """The resolved recipe as YAML."""
    return OmegaConf.to_yaml(OmegaConf.structured(recipe))


def save_recipe(recipe: Recipe, path: Path) -> None:
    """Write the resolved recipe beside a result, atomically."""
    path.parent.mkdir(parents=True, exist_ok=True)
    part = path.with_name(path.name + ".part")
    part.write_text(to_yaml(recipe), encoding="utf-8")
    os.replace(part, path)


def recipe_digest(recipe: Recipe) -> str:
    """sha256 of the resolved recipe: what a manifest records as the recipe's identity."""
    return hashlib.sha256(to_yaml(recipe).encode()).hexdigest()


def with_sampling(recipe: Recipe, sampling: dict[str, Any]) -> Recipe:
    """The recipe drawn from as `sampling` says: scheduler, num_inference_steps, guidance_scale; {} changes nothing."""
    if not sampling:
        return recipe
    model = dataclasses.replace(recipe.model, **sampling)
    steps = model.num_inference_steps
    evaluation = dataclasses.replace(recipe.evaluation, num_inference_steps=steps)
    return dataclasses.replace(recipe, model=model, evaluation=evaluation)


def run_dir(recipe: Recipe) -> Path:
    """The absolute folder that a run writes to: `run.out`/`run.name`."""
    return Path(recipe.run.out).expanduser().resolve() / recipe.run.name


def registry_dir(recipe: Recipe) -> Path:
    """The absolute folder of the checkpoint registry that the recipe names."""
    return Path(recipe.run.registry).expanduser().resolve() if recipe.run.registry else run_dir(recipe) / "registry"
