"""A distillation job small enough for tests: a tiny base, adapters of random weights, a few steps."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import yaml

from fedkd.recipe import Recipe, load_recipe
from tests.distillation.classroom import random_adapter


def job_file(folder: Path, model: Path, teachers: list[dict[str, Any]], **sections: dict[str, Any]) -> Path:
    """A recipe file FOLDER/job.yaml of a few steps; a section's keys are put over the small ones."""
    small: dict[str, dict[str, Any]] = {
        "model": {"path": str(model), "name": "tiny", "num_inference_steps": 2},
        "prompts": {
            "template": "{ink} {digit}",
            "concept": "digit",
            "slots": {"digit": ["zero", "one", "seven"], "ink": ["red", "green"]},
            "known": ["zero", "one"],
            "taught": ["seven"],
        },
        "data": {"source": "prompts"},
        "distillation": {
            "steps": 4,
            "batch_size": 4,
            "pictures": 6,
            "save_every": 2,
            "outlier": 1e6,
            "lora": {"rank": 2, "target_modules": ["to_q", "to_v"]},
            "progressive": {"start_steps": 4},
        },
        "evaluation": {"classifier": "", "samples_per_concept": 2, "steps_compared": [1, 2]},
        "run": {"name": "job", "out": str(folder / "runs")},
    }
    merged = {name: {**small.get(name, {}), **sections.get(name, {})} for name in {**small, **sections}}
    path = folder / "job.yaml"
    path.write_text(yaml.safe_dump({"kind": "distillation", "teachers": teachers, **merged}))
    return path


def job(folder: Path, model: Path, teachers: list[dict[str, Any]], *overrides: str, **sections: Any) -> Recipe:
    """The recipe of `job_file`, with overrides."""
    return load_recipe(str(job_file(folder, model, teachers, **sections)), list(overrides))


def adapter_at(path: Path, pipe: Any, seed: int = 1) -> Path:
    """An adapter file of random weights for `pipe`."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(random_adapter(pipe.unet, seed, 0.05))
    return path
