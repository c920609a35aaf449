"""Where the distillation term earns its place: gamma at equal steps and equal seconds, and under four hardships."""

from __future__ import annotations

import random
import statistics
from dataclasses import replace
from pathlib import Path
from typing import Any

from fedkd.cli.benchmarks.cells import Cell, Facts
from fedkd.cli.benchmarks.materials import Materials, pipeline
from fedkd.cli.benchmarks.students import Change, distilled, key, student

GAMMAS = (0.0, 0.5, 0.9)
AS_IS = "as is"
FEW_PICTURES, NOISY_CAPTIONS, FEW_STEPS, UNEVEN_EDGES = (
    "few pictures",
    "noisy captions",
    "few steps",
    "heterogeneous edges",
)
PICTURES, NOISE, SHORTER = 20, 0.3, 5  # pictures an edge; share of wrong captions; one edge's steps divided by
EQUAL_SECONDS = "gamma 0 at equal seconds"


def cells(recipe: Any, folder: Path) -> dict[tuple[str, str], Cell]:
    """Cells by (regime, gamma), all with lambda by provenance, and gamma = 0 at equal seconds."""
    found: dict[tuple[str, str], Cell] = {}
    for regime in REGIMES:
        shorter = replace(recipe.distillation, steps=max(1, recipe.distillation.steps // 4))
        one = replace(recipe, distillation=shorter) if regime == FEW_STEPS else recipe
        for gamma in GAMMAS:
            found[regime, f"{gamma:g}"] = student(
                one, folder, gamma=gamma, regime="" if regime == AS_IS else regime, change=REGIMES[regime]
            )
    plain = replace(recipe.distillation, gamma=0.0, teacher_weights="provenance", teachers="all")
    changed = replace(recipe, distillation=plain)
    found[AS_IS, EQUAL_SECONDS] = Cell(key(EQUAL_SECONDS), changed, _equal_seconds, folder)
    return found


def few_pictures(recipe: Any, materials: Materials) -> Materials:
    """`PICTURES` synthetic pictures an edge, drawn at random; the replay stays."""
    rng = random.Random(recipe.run.seed)
    sets = {
        name: pictures.select(sorted(rng.sample(range(len(pictures)), min(PICTURES, len(pictures)))))
        for name, pictures in materials.sets.items()
    }
    return replace(materials, sets=sets)


def noisy_captions(recipe: Any, materials: Materials) -> Materials:
    """A share `NOISE` of the edges' captions names another concept than the picture shows."""
    from fedkd.data.captions import concept_of

    rng, prompts = random.Random(recipe.run.seed), recipe.prompts

    def wrong(caption: str) -> str:
        right = concept_of(prompts, caption)
        others = [value for value in prompts.known + prompts.taught if value != right]
        return " ".join(rng.choice(others) if word == right else word for word in caption.split())

    def spoiled(pictures: Any) -> Any:
        chosen = set(rng.sample(range(len(pictures)), round(NOISE * len(pictures))))
        captions = [wrong(text) if i in chosen else text for i, text in enumerate(pictures["caption"])]
        features, columns = pictures.features, pictures.column_names
        changed = pictures.remove_columns("caption").add_column("caption", captions)
        return changed.select_columns(columns).cast(features)

    return replace(materials, sets={name: spoiled(pictures) for name, pictures in materials.sets.items()})


def uneven_edges(recipe: Any, materials: Materials) -> Materials:
    """The last edge's adapter is trained `SHORTER` times shorter; its pictures stay."""
    from fedkd.training.finetune import finetune

    last = max(materials.adapters)
    config = replace(recipe.finetune, steps=max(1, recipe.finetune.steps // SHORTER))
    weak, _ = finetune(pipeline(recipe), materials.sets[last], config, seed=recipe.run.seed)
    return replace(materials, adapters={**materials.adapters, last: weak})


REGIMES: dict[str, Change | None] = {
    AS_IS: None,
    FEW_PICTURES: few_pictures,
    NOISY_CAPTIONS: noisy_captions,
    FEW_STEPS: None,
    UNEVEN_EDGES: uneven_edges,
}


def _equal_seconds(cell: Cell) -> Facts:
    """gamma = 0 for as many steps as fit in the seconds of the recipe's steps at gamma > 0, measured here."""
    from fedkd.cli.benchmarks.step_variants import paces

    recipe = cell.recipe
    slow, fast = paces(recipe, (0.5, 0.0))
    steps = max(1, round(recipe.distillation.steps * slow / fast))
    longer = replace(recipe, distillation=replace(recipe.distillation, steps=steps))
    return distilled(longer, cell.folder) | {"pace": {"0.5": slow, "0": fast}}


def verdict(regime: str, accuracy: dict[str, list[float]]) -> str:
    """The best gamma > 0 against gamma = 0, paired by seed, in words; `accuracy` is by gamma, a seed each."""
    gains = {
        gamma: [100 * (mine - plain) for mine, plain in zip(found, accuracy["0"], strict=True)]
        for gamma, found in accuracy.items()
        if gamma != "0" and found
    }
    if not gains:
        return f"{regime}: not measured"
    best = max(gains, key=lambda gamma: statistics.mean(gains[gamma]))
    middle = statistics.mean(gains[best])
    told = f"{regime}: gamma {best} against 0 at equal steps {middle:+.1f}"
    if len(gains[best]) < 2:
        return f"{told} points in one seed: no verdict"
    sd = statistics.stdev(gains[best])
    if middle > sd:
        says = "the distillation term earns its place"
    elif middle < -sd:
        says = "plain training (gamma 0) is better"
    else:
        says = "no difference beyond the spread over seeds"
    return f"{told} ± {sd:.1f} points: {says}"
