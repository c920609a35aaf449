"""`fedkd bench privacy`: its bounds can fail, and a cell is really measured."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from fedkd.cli.benchmarks.privacy import BARE, DEFAULT, PRIVATE, SETTINGS, STRENGTHS, cell, result
from fedkd.cli.benchmarks.request import Request

SMALL = [
    "data.max_images=24",
    "data.partition=iid",
    "federation.users=2",
    "federation.edges=1",
    "model.num_inference_steps=2",
]
SMALL += ["synthesis.personal_steps=1", "synthesis.samples=2", "synthesis.seeds_per_image=1"]
SMALL += ["synthesis.num_inference_steps=2", "finetune.steps=2", "finetune.batch_size=4", "distillation.steps=2"]
SMALL += ["distillation.batch_size=4", "distillation.replay=6", "evaluation.samples_per_concept=1"]
SMALL += ["evaluation.num_inference_steps=1"]


def facts(*, student: float = 0.55, adapter: float = 0.6) -> dict[str, Any]:
    """A cell's figures, with these AUCs of the stronger attack."""
    weak, student_attack, adapter_attack = ({"auc": auc, "tpr": 0.01} for auc in (0.45, student, adapter))
    attacks = {
        "base": {"threshold": weak},
        "student": {"threshold": weak, "reference": student_attack},
        "adapter": {"threshold": weak, "reference": adapter_attack},
    }
    return {"taught": 0.8, "known": 0.9, "attacks": attacks}


def judged(**changes: dict[str, Any]) -> Any:
    """The benchmark's result when every cell found `facts`, but for those in `changes` (by setting)."""
    found = {(name, 0): facts() for name in SETTINGS} | {(BARE, 0): facts(adapter=0.9)}
    found |= {(name, 0): value for name, value in changes.items()}
    return result(Request("privacy", quick=False, out=Path()), list(SETTINGS), [0], found)


def test_settings_span_the_strengths_and_differential_privacy() -> None:
    assert {0.2, 0.9} <= set(STRENGTHS.values()) and {DEFAULT, BARE, PRIVATE} <= set(SETTINGS)


def test_tables_show_utility_beside_attacks() -> None:
    found = judged()
    assert all(shown.holds for shown in found.shows)
    chart = next(table for table in found.tables if table.chart)
    assert chart.columns == ["0.2", "0.35", "0.5", "0.65", "0.8", "0.9"]
    assert chart.rows["AUC on the student"]["0.2"] == [0.55] and chart.rows["taught concepts drawn right"]["0.9"] == [
        0.8
    ]


@pytest.mark.parametrize(
    ("setting", "found", "words"),
    [
        (DEFAULT, facts(student=0.61), "default: AUC"),
        (DEFAULT, facts(adapter=0.91), "above the default"),
        (PRIVATE, {"failed": "loss is not finite"}, "could not be measured"),
    ],
)
def test_each_bound_can_fail(setting: str, found: dict[str, Any], words: str) -> None:
    broken = [shown for shown in judged(**{setting: found}).shows if not shown.holds]
    assert len(broken) == 1 and words in str(broken[0])


def test_a_cell_is_measured_and_kept(tmp_path: Path) -> None:
    made = cell(next(iter(STRENGTHS)), 0, SMALL, tmp_path)
    found = made.carry_out()
    assert set(found["attacks"]) == {"base", "student", "adapter"}
    for model in found["attacks"].values():
        assert all(0 <= attack["auc"] <= 1 for attack in model.values())
    assert made.kept() == found and cell(BARE, 0, SMALL, tmp_path).kept() is None
