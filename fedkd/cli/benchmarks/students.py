"""Students at equal steps: each lambda rule beside the base, the edges, FedAvg and centralised training."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable
from dataclasses import replace
from itertools import pairwise
from pathlib import Path
from typing import Any

from fedkd.cli.benchmarks.cells import Cell, Facts
from fedkd.cli.benchmarks.materials import Materials, gather, pipeline, wearing

RULES = ("uniform", "size", "validation", "provenance", "confidence")
ONE_HOT = ("provenance",)  # rules under which `sampled` is `all`
CHAIN, EQUAL = "centralised, steps of the whole chain", "centralised, the student's steps"
Change = Callable[[Any, Materials], Materials]


def cells(recipe: Any, folder: Path) -> dict[str, Cell]:
    """Every row of the table, by its name."""
    rows = {name: Cell(key(name), recipe, _rival, folder) for name in ("base", *edges(recipe), *FEDAVG, CHAIN, EQUAL)}
    for rule in RULES:
        for teachers in ("all",) if rule in ONE_HOT else ("all", "sampled"):
            cell = student(recipe, folder, rule=rule, teachers=teachers)
            rows[row_of(rule, teachers)] = cell
    return rows


FEDAVG = ("FedAvg of A and B", "FedAvg of BA")


def row_of(rule: str, teachers: str = "all") -> str:
    """A student's row."""
    return f"student, lambda {rule}, {teachers}"


def edges(recipe: Any) -> list[str]:
    """The edges' names."""
    return [f"edge-{number}" for number in range(recipe.federation.edges)]


def key(text: str) -> str:
    """A row's name as a file's name."""
    return "".join(c for c in text.lower().replace(" ", "-") if c not in ",'")


def student(
    recipe: Any,
    folder: Path,
    *,
    rule: str = "provenance",
    teachers: str = "all",
    gamma: float | None = None,
    regime: str = "",
    change: Change | None = None,
) -> Cell:
    """The cell of one federated student; `change` is what a regime does to the materials."""
    config = replace(
        recipe.distillation,
        teacher_weights=rule,
        teachers=teachers,
        gamma=recipe.distillation.gamma if gamma is None else gamma,
    )
    changed = replace(recipe, distillation=config)
    name = key(f"student {regime or 'as is'} {rule} {teachers} gamma {config.gamma:g}")
    return Cell(name, changed, lambda cell: distilled(cell.recipe, folder, change), folder)


def distilled(recipe: Any, folder: Path, change: Change | None = None) -> Facts:
    """Accuracy of a student, with the seconds and the median seconds a step that it took."""
    from fedkd.distillation.distil import distil
    from fedkd.distillation.teachers import BASE

    materials = gather(recipe, folder / "materials", _quiet)
    if change:
        materials = change(recipe, materials)
    ticks: list[float] = []
    started, pipe = time.perf_counter(), pipeline(recipe)
    found = distil(
        pipe,
        {**materials.sets, BASE: materials.replay},
        materials.adapters,
        recipe,
        seed=recipe.run.seed,
        after_step=lambda *_: ticks.append(time.perf_counter()),
    )
    seconds = time.perf_counter() - started
    paces = [after - before for before, after in pairwise(ticks)] or [seconds]
    return scores(recipe, found.student) | {
        "steps": recipe.distillation.steps,
        "seconds": seconds,
        "step_seconds": statistics.median(paces),
        "teacher_weights": found.teacher_weights,
        "left_out": found.left_out,
    }


def scores(recipe: Any, adapter: bytes | None) -> Facts:
    """{"accuracy", "known", "taught", "concepts"} of the base with `adapter`, on the seed's prompts and noise."""
    from fedkd.evaluation.accuracy import evaluate

    with wearing(pipeline(recipe), adapter) as pipe:
        return dict(evaluate(pipe, recipe, seed=recipe.run.seed))


def _rival(cell: Cell) -> Facts:
    """What is no student: the base, an edge, an average, or centralised training."""
    from fedkd.distillation.averaging import average_factors, average_products

    recipe, materials = cell.recipe, gather(cell.recipe, cell.folder / "materials", _quiet)
    adapters, sizes = list(materials.adapters.values()), [float(len(s)) for s in materials.sets.values()]
    if cell.name == "base":
        return scores(recipe, None)
    if cell.name in materials.adapters:
        return scores(recipe, materials.adapters[cell.name])
    if cell.name == key(FEDAVG[0]):
        return scores(recipe, average_factors(adapters, sizes))
    if cell.name == key(FEDAVG[1]):
        return scores(recipe, average_products(adapters, sizes))
    steps = recipe.distillation.steps
    if cell.name == key(CHAIN):
        steps += recipe.synthesis.personal_steps + recipe.finetune.steps
    return scores(recipe, centralised(recipe, materials, steps)) | {"steps": steps}


def centralised(recipe: Any, materials: Materials, steps: int) -> bytes:
    """The upper bound: an adapter trained on everybody's private pictures and the replay."""
    from datasets import concatenate_datasets

    from fedkd.training.finetune import finetune

    config = recipe.distillation
    budget = replace(
        recipe.finetune,
        steps=steps,
        batch_size=config.batch_size,
        learning_rate=config.learning_rate,
        caption_dropout=config.caption_dropout,
        lora=config.lora,
    )
    shares = materials.shares
    pooled = concatenate_datasets([*shares, materials.replay.cast(shares[0].features)])
    return finetune(pipeline(recipe), pooled, budget, seed=recipe.run.seed)[0]


def slices(recipe: Any, facts: Facts, concepts: dict[str, list[str]]) -> dict[str, float]:
    """Accuracy on each edge's taught concepts, on known ones, and over all prompts."""
    shares = facts.get("concepts", {})
    found = {
        f"{edge} ({', '.join(values)})": sum(shares[value] for value in values) / len(values)
        for edge, values in concepts.items()
        if values and shares
    }
    rest = {"taught": facts.get("taught"), "known": facts.get("known"), "all": facts.get("accuracy")}
    return found | {name: value for name, value in rest.items() if value is not None}


def _quiet(text: str) -> None:
    """Materials are there already."""
