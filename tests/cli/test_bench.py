"""A benchmark's table, JSON and bounds say the same thing."""

import json
from pathlib import Path

from fedkd.cli.benchmarks.result import Result, Shown, markdown, write


def result() -> Result:
    rows = {"base": {"taught": [0.0, 0.02]}, "student": {"taught": [0.9, 0.8]}}
    shown = Shown("student above base (points)", 84.0, 25.0, True)
    return Result("demo", "fedkd bench demo", [0, 1], ["taught"], rows, [shown], ["a note"])


def test_cells_are_percent_with_the_spread_over_seeds() -> None:
    assert result().cell("student", "taught") == "85.0 ± 7.1"
    assert "| student | 85.0 ± 7.1 |" in markdown(result())


def test_the_json_has_command_machine_seeds_figures_and_bounds(tmp_path: Path) -> None:
    paths = write(result(), tmp_path)
    facts = json.loads((tmp_path / "demo.json").read_text())
    assert facts["seeds"] == [0, 1] and facts["machine"]["cores"] and facts["command"] == "fedkd bench demo"
    assert facts["shows"] == [
        {"what": "student above base (points)", "value": 84.0, "bound": 25.0, "holds": True}
    ]
    assert facts["rows"]["student"]["taught"] == [0.9, 0.8]
    assert all(path.stat().st_size for path in paths) and not list(tmp_path.glob("*.part"))
