"""Trackers of a federation: each round's figures arrive once, also when the server is resumed."""

from __future__ import annotations

import json
import shutil
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from fedkd.cli.main import app
from fedkd.distillation.jobs.tracking import Tracker
from fedkd.recipe import load_recipe, save_recipe
from server.rounds import Federation
from server.run_report import write_run_report
from server.tracking import RoundTracker, figures
from tests.server.conftest import Done
from tests.server.loopback_grid import LoopbackGrid


def scalars(run: Path) -> dict[str, list[tuple[int, float]]]:
    """{name: [(step, value)]} of all event files of a run."""
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    found: dict[str, list[tuple[int, float]]] = {}
    for file in sorted((run / "tracker").rglob("events.out.tfevents.*")):
        events = EventAccumulator(str(file)).Reload()
        for name in events.Tags()["scalars"]:
            found.setdefault(name, []).extend((event.step, event.value) for event in events.Scalars(name))
    return {name: sorted(values) for name, values in found.items()}


def test_tensorboard_gets_accuracy_losses_and_bytes_of_each_round_once(undisturbed: Done, tmp_path: Path) -> None:
    run = tmp_path / "small"
    shutil.copytree(undisturbed.run, run, ignore=shutil.ignore_patterns("nodes"))
    recipe = load_recipe("quickstart", ["run.tracker=tensorboard", "run.name=small", f"run.out={tmp_path}"])
    save_recipe(recipe, run / "recipe.yaml")
    for _ in range(2):  # the second time as a server that is resumed: nothing is sent again
        with Tracker(recipe, run) as tracker:
            again = Federation(LoopbackGrid(6), recipe, run, run / "registry", wait_s=0.0)
            again.after_round = RoundTracker(again.state, tracker).sent
            again.go()
    found = scalars(run)
    write_run_report(run)
    report: dict[str, Any] = json.loads((run / "report.json").read_text())
    for number, item in enumerate(report["rounds"], 1):
        told = {name: dict(values)[number] for name, values in found.items() if number in dict(values)}
        assert told["bytes/up"] == pytest.approx(item["bytes"]["up"])
        assert told["student/loss/loss"] == pytest.approx(item["student"]["loss"]["loss"][-1])
        assert told["users/kept"] == sum(user["kept"] for user in item["users"]) and told["edges/loss"] > 0
        assert told == pytest.approx(figures(item), rel=1e-6)
    assert all(len(values) == len(dict(values)) for values in found.values())


def test_accuracies_of_concepts_and_the_largest_epsilon_are_among_the_figures() -> None:
    student = {"accuracy": 0.5, "known": None, "concepts": {"seven": 0.25}, "loss": {"task": [0.4, 0.2]}}
    edges = [{"loss": [1.0], "privacy": {"epsilon": 2.0}}, {"loss": [3.0], "privacy": {"epsilon": 5.0}}]
    part = {"bytes": {"up": 1, "down": 2}, "checkpoint_bytes": {"moved": 3}, "student": student, "edges": edges}
    told = figures(part)
    assert told["student/accuracy"] == 0.5 and told["student/concepts/seven"] == 0.25 and "student/known" not in told
    assert told["privacy/epsilon"] == 5.0 and told["edges/loss"] == 2.0 and told["student/loss/task"] == 0.2


@pytest.mark.skipif(find_spec("wandb") is not None, reason="wandb is installed here")
def test_a_tracker_that_is_not_installed_is_one_line_before_anything_starts(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    done = CliRunner().invoke(app, ["simulate", "quickstart", "run.tracker=wandb"])
    assert done.exit_code == 2 and "pip install 'fedkd[wandb]'" in str(done.stderr)
    assert not (tmp_path / "runs").exists()
