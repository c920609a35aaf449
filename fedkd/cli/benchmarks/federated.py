"""`fedkd bench federated`: the student against FedAvg of the adapters and against centralised training."""

from __future__ import annotations

import json
import os
import statistics
from collections.abc import Callable
from pathlib import Path
from typing import Any

from fedkd.cli.benchmarks.result import Result, Shown

MARGIN = 25.0  # points that the student has to be above FedAvg on taught concepts
COLUMNS = ["taught", "known", "all"]
QUICK = ["synthesis.personal_steps=30", "finetune.steps=40", "distillation.steps=40", "distillation.replay=70"]


def run(quick: bool, out: Path, overrides: list[str], say: Callable[[str], None]) -> Result:
    """Three seeds (one when quick) of everything, from the same synthetic sets and adapters a seed.

    Each seed's scores are kept under `out`/federated, so an interrupted benchmark goes on.
    """
    from fedkd.recipe import load_recipe, recipe_digest

    seeds = [0] if quick else [0, 1, 2]
    rows: dict[str, dict[str, list[float]]] = {}
    for seed in seeds:
        recipe = load_recipe("quickstart", [*(QUICK if quick else []), *overrides, f"run.seed={seed}"])
        kept = out / "federated" / f"{recipe_digest(recipe)[:12]}.json"
        if kept.is_file():
            scores = json.loads(kept.read_text("utf-8"))
        else:
            scores = one_seed(recipe, lambda text, seed=seed: say(f"seed {seed}: {text}"))  # type: ignore[misc]
            kept.parent.mkdir(parents=True, exist_ok=True)
            part = kept.with_suffix(".part")
            part.write_text(json.dumps(scores), encoding="utf-8")
            os.replace(part, kept)
        for method, score in scores.items():
            row = rows.setdefault(method, {column: [] for column in COLUMNS})
            for column, key in zip(COLUMNS, ("taught", "known", "accuracy"), strict=True):
                row[column].append(score[key])
    command = " ".join(["fedkd bench federated", *(["--quick"] if quick else []), *overrides])
    result = Result("federated", command, seeds, COLUMNS, rows)
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
    from datasets import concatenate_datasets

    from fedkd.data.partition import edge_of, partition
    from fedkd.data.sources import load_images
    from fedkd.distillation.averaging import average_factors, average_products
    from fedkd.distillation.federated import distil, draw_replay
    from fedkd.evaluation.accuracy import evaluate
    from fedkd.models.adapter import load_adapter, remove_adapters
    from fedkd.models.pipeline import denoiser_of, load_pipeline
    from fedkd.synthesis.synthesise import synthesise
    from fedkd.training.finetune import finetune

    model, run, seed = recipe.model, recipe.run, recipe.run.seed
    pipe = load_pipeline(model.path, device=run.device, dtype=run.dtype, scheduler=model.scheduler)
    denoiser = denoiser_of(pipe)
    shares = partition(load_images(recipe), recipe)
    by_edge: dict[str, list[Any]] = {}
    for user, private in enumerate(shares):
        synthetic, audit = synthesise(pipe, private, recipe, seed=1000 * seed + user)
        by_edge.setdefault(f"edge-{edge_of(user, recipe)}", []).append(synthetic)
        say(f"user {user} gave {audit['kept']} synthetic pictures of {audit['private']} private ones")
    sets = {name: concatenate_datasets(parts) for name, parts in by_edge.items()}
    adapters = {}
    for name, data in sets.items():
        adapters[name], _ = finetune(pipe, data, recipe.finetune, seed=seed)
        say(f"{name} fine-tuned")
    replay = draw_replay(pipe, recipe, seed=seed)
    student, _ = distil(pipe, sets, adapters, replay, recipe, seed=seed)
    say("student distilled")
    pooled = concatenate_datasets([*shares, replay.cast(shares[0].features)])
    budget = type(recipe.finetune)(
        steps=recipe.distillation.steps,
        batch_size=recipe.distillation.batch_size,
        learning_rate=recipe.distillation.learning_rate,
        caption_dropout=recipe.distillation.caption_dropout,
        lora=recipe.distillation.lora,
    )
    central, _ = finetune(pipe, pooled, budget, seed=seed)
    say("centralised trained on the pooled private pictures")
    sizes = [float(len(sets[name])) for name in adapters]
    rivals: dict[str, bytes | None] = {
        "base": None,
        **adapters,
        "FedAvg of A and B": average_factors(list(adapters.values()), sizes),
        "FedAvg of BA": average_products(list(adapters.values()), sizes),
        "student": student,
        "centralised": central,
    }
    scores: dict[str, dict[str, float]] = {}
    for method, adapter in rivals.items():
        if adapter is not None:
            load_adapter(denoiser, adapter, "rival")
            denoiser.set_adapter("rival")
        score: Any = evaluate(pipe, recipe, seed=seed)
        remove_adapters(denoiser)
        scores[method] = {key: float(score[key]) for key in ("taught", "known", "accuracy")}
        say(f"{method}: taught {100 * scores[method]['taught']:.1f}%, known {100 * scores[method]['known']:.1f}%")
    return scores
