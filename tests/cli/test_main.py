"""The command line as a user meets it: help that teaches, answers at once, and one line for a mistake."""

import re
import subprocess
import sys
from pathlib import Path

import pytest
import typer.main
from typer.testing import CliRunner

from fedkd import __version__
from fedkd.cli.main import app

VERBS = ("simulate", "distill", "generate", "serve", "bench", "pretrain", "recipes",
         "checkpoints", "publish", "pull", "registry", "keys", "plan")  # fmt: skip
RUN = [sys.executable, "-c", "from fedkd.cli.main import app; app(prog_name='fedkd')"]
ROOT = Path(__file__).resolve().parents[2]
HEAVY = ("torch", "diffusers", "transformers", "datasets", "flwr", "ray", "fastapi", "omegaconf")


def fedkd(*arguments: str, cwd: Path = ROOT) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [*RUN, *arguments], capture_output=True, text=True, cwd=cwd, timeout=60, check=False,
        env={"PATH": "", "PYTHONPATH": str(ROOT), "HOME": str(cwd), "COLUMNS": "100"},
    )  # fmt: skip


def all_commands() -> list[list[str]]:
    """Every command that can be typed, as words."""

    def walk(command, words):
        found = [words]
        for name, child in getattr(command, "commands", {}).items():
            found += walk(child, [*words, name])
        return found

    return walk(typer.main.get_command(app), [])


MODELS_AND_FLOWER = tuple(name for name in HEAVY if name not in ("fastapi", "omegaconf"))  # registry and recipe
BEFORE_FLOWER = "fedkd.models.source, fedkd.cli.carry_out, fedkd.cli.live, server.simulation, server.deployment"
BEFORE_FLOWER += ", server.run_report"


@pytest.mark.parametrize(
    ("modules", "heavy"),
    [("fedkd.cli.main", HEAVY), (BEFORE_FLOWER, MODELS_AND_FLOWER)],
    ids=["help", "before Flower starts"],
)
def test_nothing_heavy_is_imported_before_it_is_needed(modules, heavy):
    found = subprocess.run(
        [sys.executable, "-c", f"import {modules}, sys; print(*sys.modules)"],
        capture_output=True, text=True, cwd=ROOT, check=True,
    )  # fmt: skip
    assert not set(heavy) & set(found.stdout.split())


def test_help_lists_every_verb_and_starts_with_the_quickstart():
    text = fedkd("--help").stdout
    assert "fedkd simulate quickstart" in text
    assert all(re.search(rf"^\W*{verb}\b", text, re.MULTILINE) for verb in VERBS)


@pytest.mark.parametrize("words", all_commands(), ids=lambda words: " ".join(words) or "fedkd")
def test_every_command_s_help_shows_an_example(words):
    result = CliRunner().invoke(app, [*words, "--help"], env={"COLUMNS": "200"})
    assert result.exit_code == 0
    below_usage = result.output.split("Usage:")[1].split("\n", 1)[1]
    assert re.search(rf"{' '.join(['fedkd', *words])}\b", below_usage)


def test_version_is_the_package_s():
    assert fedkd("--version").stdout == f"fedkd {__version__}\n"


def test_a_verb_that_does_not_exist_exits_with_an_error():
    result = fedkd("simulte")
    assert result.returncode != 0 and "simulte" in result.stderr and "Traceback" not in result.stderr


@pytest.mark.parametrize(
    ("arguments", "named"),
    [
        (["recipes", "show", "quikstart"], "did you mean 'quickstart'"),
        (["recipes", "show", "quickstart", "distillation.gama=1"], "did you mean 'gamma'"),
        (["recipes", "validate", "quickstart", "run.seed"], "has no '='"),
        (["recipes", "validate", "nowhere.yaml"], "no recipe file"),
        (["simulate", "quikstart"], "did you mean 'quickstart'"),
        (["simulate", "quickstart", "distillation.gamma=2"], "distillation.gamma=2"),
        (["pretrain", "tiny-st"], "did you mean 'tiny-sd'"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else "",
)
def test_a_mistake_is_one_line_and_not_a_stack_trace(arguments, named, tmp_path):
    result = fedkd(*arguments, cwd=tmp_path)
    assert result.returncode == 2
    assert result.stderr.startswith("error: ") and named in result.stderr
    assert len(result.stderr.splitlines()) == 1
    assert list(tmp_path.iterdir()) == []


def test_recipes_ls_names_each_with_the_command_that_runs_it():
    lines = fedkd("recipes", "ls").stdout.splitlines()
    assert any(line.startswith("quickstart") and "fedkd simulate quickstart" in line for line in lines)
    assert any("fedkd pretrain tiny-sd" in line for line in lines)


def test_what_recipes_show_prints_is_a_recipe(tmp_path):
    shown = fedkd("recipes", "show", "quickstart", "run.seed=5")
    (tmp_path / "mine.yaml").write_text(shown.stdout)
    again = fedkd("recipes", "show", "mine.yaml", cwd=tmp_path)
    assert again.stdout == shown.stdout and "seed: 5" in shown.stdout


def test_recipes_validate_says_so():
    result = fedkd("recipes", "validate", "quickstart", "federation.rounds=3")
    assert result.returncode == 0 and re.fullmatch(r"quickstart: valid, sha256:[0-9a-f]{64}\n", result.stdout)
