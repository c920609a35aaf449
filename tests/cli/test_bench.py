"""A benchmark's tables, JSON, page and bounds say the same thing."""

import json
import math
from pathlib import Path

import pytest

from fedkd.cli.bench import NAMES
from fedkd.cli.benchmarks.request import Request
from fedkd.cli.benchmarks.result import Result, Shown, Table, at_least, at_most, markdown, write


def result() -> Result:
    rows = {"base": {"taught": [0.0, 0.02], "steps": [3.0, 3.0]}, "student": {"taught": [0.9, 0.8]}}
    shown = Shown("student above base (points)", 84.0, 25.0, True)
    table = Table("Accuracy", ["taught", "steps"], rows, plain_columns=["steps"], chart="bars")
    cost = Table("Seconds", ["1", "2", "16"], {"ours": {"1": [0.25], "16": [0.5]}}, plain=True, digits=2, chart="lines")
    return Result("demo", "fedkd bench demo", [0, 1], [table, cost], [shown], ["a note"])


def test_cells_are_percent_with_the_spread_over_seeds_and_plain_figures_stay() -> None:
    accuracy, cost = result().tables
    assert accuracy.cell("student", "taught") == "85.0 ± 7.1"
    assert accuracy.cell("base", "steps") == "3.0 ± 0.0" and accuracy.cell("student", "steps") == "-"
    assert cost.cell("ours", "16") == "0.50"
    page = markdown(result())
    assert "| student | 85.0 ± 7.1 | - |" in page and "## Seconds" in page
    assert "`fedkd bench demo`, seeds [0, 1]" in page and "- holds: student above base (points): 84 (bound 25)" in page


def test_the_json_has_command_machine_seeds_figures_and_bounds(tmp_path: Path) -> None:
    paths = write(result(), tmp_path)
    facts = json.loads((tmp_path / "demo.json").read_text())
    assert facts["seeds"] == [0, 1] and facts["machine"]["cores"] and facts["command"] == "fedkd bench demo"
    assert facts["shows"] == [{"what": "student above base (points)", "value": 84.0, "bound": 25.0, "holds": True}]
    assert facts["tables"][0]["rows"]["student"]["taught"] == [0.9, 0.8]
    assert [path.name for path in paths] == ["demo.json", "demo.md", "demo.png"]
    assert all(path.stat().st_size for path in paths) and not list(tmp_path.glob("*.part"))


@pytest.mark.parametrize("value", [math.nan, 0.89])
def test_a_bound_fails_below_it_and_when_nothing_was_measured(value: float) -> None:
    assert not at_least("x", value, 0.9).holds and at_least("x", 0.9, 0.9).holds
    assert not at_most("x", math.nan, 1.25).holds and at_most("x", 1.25, 1.25).holds


def test_the_command_repeats_what_was_asked() -> None:
    asked = Request("distillation", quick=True, overrides=["run.threads=2"], jobs=2)
    assert asked.command == "fedkd bench distillation --quick --jobs 2 run.threads=2"
    assert asked.name in NAMES
