"""`fedkd bench distillation`: federated students, the worth of gamma, few-step students, and a step's cost."""

from __future__ import annotations

import time
from dataclasses import replace
from functools import cache, partial
from pathlib import Path
from typing import Any

from fedkd.cli.benchmarks import few_step, regimes, step_cost, students
from fedkd.cli.benchmarks.cells import Cell, Facts, carry_out_all
from fedkd.cli.benchmarks.request import Request, silent
from fedkd.cli.benchmarks.result import Result

SEEDS = (0, 1, 2)
QUICK = [
    "data.max_images=48",
    "synthesis.personal_steps=4",
    "synthesis.samples=8",
    "synthesis.seeds_per_image=1",
    "synthesis.num_inference_steps=3",
    "finetune.steps=5",
    "distillation.steps=4",
    "distillation.replay=14",
    "evaluation.samples_per_concept=4",
    "evaluation.num_inference_steps=4",
    "model.num_inference_steps=4",
]
MATERIALS, STEP = "materials", "step"
Key = tuple[int, str]  # (seed, cell); the step's cost has no seed of its own and stands under the first


def run(request: Request) -> Result:
    """Everything, cell by cell; what an earlier run kept is not measured again."""
    from fedkd.cli.benchmarks.tables import result_of

    seeds = list(SEEDS[:1] if request.quick else SEEDS)
    threads = recipe_of(request, 0).run.threads
    carry = partial(carry_out_all, threads=threads)
    work = partial(carry_out, replace(request, say=silent))
    started, total, done = time.perf_counter(), [0], [0]

    def say(key: Key, facts: Facts) -> None:
        done[0] += 1
        minutes = (time.perf_counter() - started) / 60
        outcome = f"left out: {facts['failed']}" if "failed" in facts else "done"
        request.say(f"[{done[0]}/{total[0]}, {minutes:.1f} min] seed {key[0]}: {key[1]} {outcome}")

    first = [(seed, MATERIALS) for seed in seeds]
    main = [(seed, name) for seed in seeds for name in plan(request, seed)]
    main += [(seeds[0], f"{STEP}/{what}/{variant}") for what, variant in step_cost.memory_keys(request)]
    alone = [(seeds[0], f"{STEP}/{what}/{variant}") for what, variant in step_cost.time_keys()]
    total[0] = len(first) + len(main) + len(alone)
    found = carry(first, work, jobs=request.jobs, say=say)
    found |= carry(main, work, jobs=request.jobs, say=say)
    found |= carry(alone, work, jobs=1, say=say)
    return result_of(request, seeds, found)


def recipe_of(request: Request, seed: int) -> Any:
    """The recipe of one seed."""
    return _loaded(tuple([*(QUICK if request.quick else []), *request.overrides, f"run.seed={seed}"]))


@cache
def _loaded(overrides: tuple[str, ...]) -> Any:
    from fedkd.recipe import load_recipe

    return load_recipe("quickstart", overrides)


def folder_of(request: Request, seed: int) -> Path:
    """OUT/distillation/DIGEST/seed-K, where DIGEST covers all that the materials depend on."""
    from fedkd.recipe import DistillationConfig, EvaluationConfig, recipe_digest

    recipe = recipe_of(request, 0)
    made = replace(
        recipe,
        distillation=DistillationConfig(replay=recipe.distillation.replay),
        evaluation=EvaluationConfig(),
    )
    return request.out / "distillation" / recipe_digest(made)[:12] / f"seed-{seed}"


def plan(request: Request, seed: int) -> dict[str, Cell]:
    """Every cell of a seed by name, what the bounds need first; students that two tables share stand once."""
    recipe, folder = recipe_of(request, seed), folder_of(request, seed)
    cells = [
        *students.cells(recipe, folder).values(),
        *few_step.cells(recipe, folder, request.quick).values(),
        *regimes.cells(recipe, folder).values(),
    ]
    return {cell.name: cell for cell in cells}


def carry_out(request: Request, key: Key) -> Facts:
    """Measure one cell, in whichever process."""
    seed, name = key
    if name == MATERIALS:
        from fedkd.cli.benchmarks.materials import gather

        materials = gather(recipe_of(request, seed), folder_of(request, seed) / MATERIALS, request.say)
        return {"concepts": materials.concepts(recipe_of(request, seed))}
    if name.startswith(f"{STEP}/"):
        _, what, variant = name.split("/")
        folder = folder_of(request, seed).parent / "step-cost"
        return step_cost.cell(recipe_of(request, 0), folder, request, what, variant).carry_out()
    return plan(request, seed)[name].carry_out()
