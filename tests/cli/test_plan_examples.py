"""The examples that `fedkd plan`'s help texts print are commands that run."""

import re
import shlex
from pathlib import Path

import pytest
from typer.testing import CliRunner

from fedkd.cli.plan import plan

QUICK = ("split", "offload", "denoising", "condition")


def examples(verb: str) -> list[str]:
    shown = CliRunner().invoke(plan, [verb, "--help"], env={"COLUMNS": "300"}).stdout
    return [line.strip() for line in re.findall(r"Example: (.+)", shown)]


@pytest.mark.parametrize("verb", QUICK)
def test_each_example_runs(verb: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    commands = [part for line in examples(verb) for part in line.split("; ")]
    assert commands
    for command in commands:
        words = shlex.split(command)
        if "profile-conditions" in words or "mine.json" in words or "1000000" in words:
            continue  # measures for a while, and is tested by itself
        kept = words[words.index(">") + 1] if ">" in words else ""
        found = CliRunner().invoke(plan, words[2 : words.index(">")] if kept else words[2:])
        assert found.exit_code == 0, f"{command}: {found.output}"
        if kept:
            (tmp_path / kept).write_text(found.stdout)
