"""Recipes are listed with the command that runs them, and copied without ever overwriting."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from fedkd.cli.main import app
from fedkd.recipe import RECIPES_DIR, load_recipe, recipe_names


def recipes(*arguments: object) -> Any:
    return CliRunner().invoke(app, ["recipes", *map(str, arguments)])


def test_ls_gives_each_recipe_the_verb_of_its_kind() -> None:
    lines = {line.split()[0]: line for line in recipes("ls").stdout.splitlines()}
    assert set(lines) == set(recipe_names())
    verbs = {"federation": "simulate", "distillation": "distill", "pretrain": "pretrain", "controlnet": "pretrain"}
    for name, line in lines.items():
        assert f"fedkd {verbs[load_recipe(name).kind]} {name}" in line


@pytest.mark.parametrize("target", ["", "mine.yaml", "folder", "new/deep.yml"])
def test_copy_gives_the_file_as_it_is_and_the_command_that_runs_it(
    target: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "folder").mkdir()
    result = recipes("copy", "quickstart", *([target] if target else []))
    place = {"": "quickstart.yaml", "folder": "folder/quickstart.yaml"}.get(target, target)
    assert result.exit_code == 0 and f"fedkd simulate {place}" in result.stdout
    assert (tmp_path / place).read_bytes() == (RECIPES_DIR / "quickstart.yaml").read_bytes()
    assert recipes("validate", place).exit_code == 0


@pytest.mark.parametrize(
    ("arguments", "named"),
    [
        (["quickstart", "mine.yaml"], "PATH=mine.yaml exists already"),
        (["quickstart", "mine.txt"], "does not end in .yaml"),
        (["quikstart"], "did you mean 'quickstart'"),
    ],
)
def test_copy_refuses_and_leaves_everything_as_it_was(
    arguments: list[str], named: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "mine.yaml").write_text("mine")
    result = recipes("copy", *arguments)
    assert result.exit_code == 2 and named in result.stderr and len(result.stderr.splitlines()) == 1
    assert [path.name for path in tmp_path.iterdir()] == ["mine.yaml"]
    assert (tmp_path / "mine.yaml").read_text() == "mine"
