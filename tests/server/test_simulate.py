"""`fedkd simulate` through the front door: Flower's real simulation, real HTTP, and nothing left running."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import psutil
import pytest
from typer.testing import CliRunner

from fedkd.cli.main import app
from server.processes import FLWR
from tests.server.conftest import SMALL, private_folder

FEDKD = [sys.executable, "-c", "from fedkd.cli.main import app; app()", "simulate"]
ROOT = Path(__file__).resolve().parents[2]


def call(*arguments: str, cwd: Path) -> subprocess.CompletedProcess[str]:
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    return subprocess.run([*FEDKD, *arguments], cwd=cwd, env=environment, capture_output=True, text=True, timeout=280)


def processes_of_runs() -> set[int]:
    found = set()
    for process in psutil.process_iter():
        try:
            if "/fedkd-" in process.environ().get("FLWR_HOME", ""):
                found.add(process.pid)
        except (psutil.Error, OSError):
            continue
    return found


def test_a_run_ends_with_a_report_and_no_process(
    tiny_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = processes_of_runs()
    places = (f"model.path={tiny_folder}", "model.name=tiny", f"data.path={private_folder(tmp_path / 'private')}")
    small = ("federation.edges=1", "federation.users=2", "federation.rounds=1", "serving.split_images=2")
    small += ("federation.phase_timeout_s=200",)  # on a busy machine a node's first import alone takes a minute
    done = call("quickstart", *SMALL, *places, *small, "run.name=front", cwd=tmp_path)
    assert done.returncode == 0, done.stderr[-3000:]
    run = tmp_path / "runs" / "front"
    report = json.loads((run / "report.json").read_text())
    assert report["split"]["bitwise_equal"] and len(report["split"]["images"]) == 2
    assert report["checkpoint"]["version"] == "v1" and report["wall_seconds"] > 0
    assert (run / "report.html").stat().st_size > 1000
    cost = report["rounds"][0]["checkpoint_bytes"]  # an edge takes base and student, two users the base
    assert cost["via"] == "registry" and (cost["models"], cost["nodes"]) == (4, 3) and 0 < cost["moved"] < cost["full"]
    assert "checkpoints to nodes: " in done.stdout + done.stderr
    down = {phase["name"]: phase["bytes"]["down"] for phase in report["rounds"][0]["phases"]}
    assert down["refresh"] + down["synthesise"] + down["redistribute"] < cost["moved"] / 10
    assert "registry_url: ''" in (run / "recipe.yaml").read_text()
    assert all((run / image["picture"]).is_file() for image in report["split"]["images"])
    assert processes_of_runs() <= before
    monkeypatch.chdir(tmp_path)
    again = CliRunner().invoke(app, ["simulate", "--resume", str(run)])  # nothing left to federate: only shown again
    assert again.exit_code == 0, again.output[-3000:]


def only_one_line(told: str, words: str) -> None:
    lines = [line for line in told.splitlines() if line.startswith("error:")]
    assert len(lines) == 1 and words in lines[0] and "Traceback" not in told


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (("quickstrat",), "quickstart"),
        (("quickstart", "distilation.gamma=1"), "distillation"),
        (("quickstart", "data.source=folder", "data.path=."), "no pictures"),
        (("--resume", "nothing"), "no run"),
    ],
)
def test_a_mistake_is_one_line_and_leaves_nothing(
    arguments: tuple[str, ...], words: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    done = CliRunner().invoke(app, ["simulate", *arguments])
    assert done.exit_code == 2
    only_one_line(done.stderr, words)
    assert not (tmp_path / "runs").exists()


def test_a_process_ends_with_the_code_and_the_line_of_a_mistake(tmp_path: Path) -> None:
    done = call("quickstart", "model.path=/no/such/model", cwd=tmp_path)
    assert done.returncode == 2
    only_one_line(done.stderr, "does not exist")
    assert not (tmp_path / "runs").exists()


def test_flower_still_has_the_patience_that_runs_lengthen() -> None:
    from flwr.cli import local_superlink

    assert 0 < local_superlink.LOCAL_SUPERLINK_STARTUP_TIMEOUT < 120 and "STARTUP_TIMEOUT = 120" in FLWR[-1]
