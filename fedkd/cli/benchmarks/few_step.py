"""Few-step students beside their teachers: prompt accuracy, FID and KID at 1, 2, 4, 8 and 32 steps."""

from __future__ import annotations

import time
from dataclasses import replace
from functools import cache, lru_cache
from pathlib import Path
from typing import Any

from fedkd.cli.benchmarks.cells import Cell, Facts
from fedkd.cli.benchmarks.materials import Materials, gather, pipeline, wearing

METHODS = ("progressive", "adversarial", "consistency")
TEACHER, UNGUIDED, REAL = "teachers", "teachers, no guidance", "real pictures"
STEPS = (1, 2, 4, 8)
FULL_STEPS = 32
QUICK_STEPS = 12


def cells(recipe: Any, folder: Path, quick: bool) -> dict[str, Cell]:
    """One cell a method, one of the teachers themselves, and one of real pictures, as a floor for FID and KID."""
    # At very few steps a teacher is better off without guidance: the fairer rival there.
    plain = replace(recipe, model=replace(recipe.model, guidance_scale=1.0))
    found = {
        TEACHER: Cell("few-step-teachers", recipe, _teachers, folder),
        UNGUIDED: Cell("few-step-teachers-unguided", plain, _teachers, folder),
    }
    for method in METHODS:
        changed = replace(recipe, distillation=section(recipe, method, quick))
        found[method] = Cell(f"few-step-{method}", changed, _method, folder)
    found[REAL] = Cell("few-step-real", recipe, _real, folder)
    return found


def section(recipe: Any, method: str, quick: bool) -> Any:
    """The distillation section of the shipped recipe of `method`, teachers asked by provenance."""
    config = _shipped(f"distill-{method}").distillation
    steps = QUICK_STEPS if quick else config.steps
    return replace(config, teacher_weights="provenance", teachers="all", steps=steps, replay=recipe.distillation.replay)


@cache
def _shipped(name: str) -> Any:
    from fedkd.recipe import load_recipe

    return load_recipe(name)


def asked(recipe: Any) -> list[str]:
    """The evaluation's prompts: `samples_per_concept` of every concept."""
    from fedkd.data.captions import prompts_for

    prompts, each = recipe.prompts, recipe.evaluation.samples_per_concept
    return [text for v in prompts.known + prompts.taught for text in prompts_for(prompts, v, each, recipe.run.seed)]


def _draw(pipe: Any, recipe: Any, prompts: list[str], steps: int, guidance: float) -> list[Any]:
    from fedkd.models.sampling import sample

    return sample(
        pipe,
        prompts,
        seed=recipe.run.seed,
        num_inference_steps=steps,
        guidance_scale=guidance,
        batch_size=recipe.evaluation.batch_size,
    )


def judged(recipe: Any, prompts: list[str], images: list[Any]) -> dict[str, float]:
    """{"accuracy", "fid", "kid"} of pictures drawn for `prompts`, against held-out real ones."""
    from fedkd.data.captions import slots_of
    from fedkd.evaluation.accuracy import judge
    from fedkd.evaluation.fidelity import fidelity

    classifier, side = judge(recipe.evaluation.classifier), recipe.model.resolution
    read = classifier.read(images, side)
    right = [slots_of(recipe.prompts, text) == found for text, found in zip(prompts, read, strict=True)]
    distances = fidelity(real_pictures("judge", side, len(prompts)), images, classifier, side)
    return {"accuracy": sum(right) / len(right), **distances}


@lru_cache(maxsize=4)
def real_pictures(split: str, resolution: int, count: int) -> list[Any]:
    """`count` coloured digits of a split, in equal shares of all ten where there are enough.

    No generator ever sees the split `judge`; the colours are drawn anew here.
    """
    from fedkd.data.digits import coloured_digits

    rows = coloured_digits(split, resolution, seed=20_000)
    by_label: dict[Any, list[Any]] = {}
    for row in rows:
        by_label.setdefault(row["label"], []).append(row["image"])
    each = -(-count // len(by_label))
    return [image for label in sorted(by_label) for image in by_label[label][:each]]


def _teachers(cell: Cell) -> Facts:
    """Every teacher draws what it knows: an edge its own concepts, the base the others."""
    recipe = cell.recipe
    materials = gather(recipe, cell.folder / "materials", lambda _: None)
    return {str(steps): _by_teachers(recipe, materials, steps) for steps in (*STEPS, FULL_STEPS)}


def _by_teachers(recipe: Any, materials: Materials, steps: int) -> dict[str, float]:
    from fedkd.data.captions import concept_of

    owner: dict[str, str] = {}
    for edge, concepts in materials.concepts(recipe).items():
        for concept in concepts:
            owner.setdefault(concept, edge)
    prompts, told, images = asked(recipe), [], []
    for name in [None, *materials.adapters]:
        mine = [text for text in prompts if owner.get(str(concept_of(recipe.prompts, text))) == name]
        if not mine:
            continue
        with wearing(pipeline(recipe), materials.adapters[name] if name else None) as pipe:
            images += _draw(pipe, recipe, mine, steps, recipe.model.guidance_scale)
        told += mine
    return judged(recipe, told, images)


def _method(cell: Cell) -> Facts:
    """One method's student, drawn from in its own way at every step count."""
    from fedkd.distillation.distil import distil
    from fedkd.distillation.teachers import BASE

    recipe = cell.recipe
    materials = gather(recipe, cell.folder / "materials", lambda _: None)
    pipe, started = pipeline(recipe), time.perf_counter()
    sets = {**materials.sets, BASE: materials.replay}
    found = distil(
        pipe,
        sets,
        materials.adapters,
        recipe,
        seed=recipe.run.seed,
        folder=cell.folder / "courses" / f"{cell.name}-{cell.identity}",
    )
    facts: Facts = {"seconds": time.perf_counter() - started, "train_steps": recipe.distillation.steps}
    prompts = asked(recipe)
    for steps in STEPS:
        with wearing(pipe, found.stages.get(steps, found.student), found.drawing.scheduler):
            images = _draw(pipe, recipe, prompts, steps, found.drawing.guidance_scale)
        facts[str(steps)] = judged(recipe, prompts, images)
    return facts


def _real(cell: Cell) -> Facts:
    """Other real pictures against the held-out ones: what FID and KID are for pictures without fault."""
    from fedkd.evaluation.accuracy import judge
    from fedkd.evaluation.fidelity import fidelity

    recipe = cell.recipe
    side, count = recipe.model.resolution, len(asked(recipe))
    classifier = judge(recipe.evaluation.classifier)
    return fidelity(real_pictures("judge", side, count), real_pictures("private", side, count), classifier, side)
