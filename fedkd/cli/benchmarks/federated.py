"""`fedkd bench federated`: the student against FedAvg of the adapters and against centralised training."""

from __future__ import annotations

import json
import os
import statistics
from collections.abc import Callable
from typing import Any

from fedkd.cli.benchmarks.request import Request
from fedkd.cli.benchmarks.result import Result, Shown, Table

MARGIN = 25.0  # points that the student has to be above FedAvg on taught concepts
COLUMNS = ["taught", "known", "all"]
QUICK = ["synthesis.personal_steps=30", "finetune.steps=40", "distillation.steps=40", "distillation.replay=70"]


def run(request: Request) -> Result:
    """Three seeds (one when quick) of everything, from the same synthetic sets and adapters a seed.

    Each seed's scores are kept under `out`/federated, so an interrupted benchmark goes on.
    """
    from fedkd.recipe import load_recipe, recipe_digest

    seeds = [0] if request.quick else [0, 1, 2]
    rows: dict[str, dict[str, list[float]]] = {}
    for seed in seeds:
        recipe = load_recipe("quickstart", [*(QUICK if request.quick else []), *request.overrides, f"run.seed={seed}"])
        kept = request.out / "federated" / f"{recipe_digest(recipe)[:12]}.json"
        if kept.is_file():
            scores = json.loads(kept.read_text("utf-8"))
        else:
            scores = one_seed(recipe, lambda text, seed=seed: request.say(f"seed {seed}: {text}"))  # type: ignore[misc]
            kept.parent.mkdir(parents=True, exist_ok=True)
            part = kept.with_suffix(".part")
            part.write_text(json.dumps(scores), encoding="utf-8")
            os.replace(part, kept)
        for method, score in scores.items():
            row = rows.setdefault(method, {column: [] for column in COLUMNS})
            for column, key in zip(COLUMNS, ("taught", "known", "accuracy"), strict=True):
                row[column].append(score[key])
    result = Result(
        "federated", request.command, seeds, [Table("Prompt accuracy (percent)", COLUMNS, rows, chart="bars")]
    )
    taught = {method: 100 * statistics.mean(row["taught"]) for method, row in rows.items()}
    for rival in ("FedAvg of A and B", "FedAvg of BA"):
        gap = taught["student"] - taught[rival]
        result.shows.append(Shown(f"student above {rival} on taught concepts (points)", gap, MARGIN, gap >= MARGIN))
    gaps = [100 * (c - s) for c, s in zip(rows["centralised"]["taught"], rows["student"]["taught"], strict=True)]
    sd = f" ± {statistics.stdev(gaps):.1f}" if len(gaps) > 1 else ""
    result.notes.append(f"centralised minus student on taught concepts: {statistics.mean(gaps):.1f}{sd} points")
    return result


def one_seed(recipe: Any, say: Callable[[str], None]) -> dict[str, dict[str, float]]:
    """Scores by method: base, each edge, both FedAvgs, student and centralised, on the same prompts and noise."""
    from fedkd.cli.benchmarks import students
    from fedkd.cli.benchmarks.materials import gather, pipeline
    from fedkd.distillation.averaging import average_factors, average_products
    from fedkd.distillation.distil import distil
    from fedkd.distillation.teachers import BASE

    materials = gather(recipe, None, say)
    pictures = {**materials.sets, BASE: materials.replay}
    student = distil(pipeline(recipe), pictures, materials.adapters, recipe, seed=recipe.run.seed).student
    say("student distilled")
    central = students.centralised(recipe, materials, recipe.distillation.steps)
    say("centralised trained on the pooled private pictures")
    adapters = list(materials.adapters.values())
    sizes = [float(len(materials.sets[name])) for name in materials.adapters]
    rivals: dict[str, bytes | None] = {
        "base": None,
        **materials.adapters,
        "FedAvg of A and B": average_factors(adapters, sizes),
        "FedAvg of BA": average_products(adapters, sizes),
        "student": student,
        "centralised": central,
    }
    found: dict[str, dict[str, float]] = {}
    for method, adapter in rivals.items():
        score = students.scores(recipe, adapter)
        found[method] = {key: float(score[key]) for key in ("taught", "known", "accuracy")}
        say(f"{method}: taught {100 * found[method]['taught']:.1f}%, known {100 * found[method]['known']:.1f}%")
    return found
