"""`fedkd distill` by the front door: four methods, a kill -9 that costs nothing, and one line for a mistake."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from fedkd.cli.main import app
from tests.distillation.small_job import adapter_at, job, job_file

ROOT = Path(__file__).resolve().parents[2]


def distill(*arguments: object) -> Any:
    return CliRunner().invoke(app, ["distill", *map(str, arguments)])


@pytest.mark.parametrize("method", ["federated", "progressive", "adversarial", "consistency"])
def test_each_method_runs_and_says_where_its_report_is(
    method: str, tiny_pipeline: Any, tiny_folder: Path, tmp_path: Path
) -> None:
    adapter = adapter_at(tmp_path / "edge.safetensors", tiny_pipeline)
    teachers = [{"adapter": str(adapter), "concepts": ["seven"]}]
    recipe = job_file(tmp_path, tiny_folder, teachers, evaluation={"steps_compared": [1]})
    result = distill(recipe, f"distillation.method={method}")
    assert result.exit_code == 0, result.output
    assert result.stdout.strip().endswith("report.html")
    run = tmp_path / "runs" / "job"
    assert (run / "checkpoint" / "model_index.json").is_file() and (run / "samples" / "steps-1.png").is_file()
    again = distill(recipe, f"distillation.method={method}")
    assert again.exit_code == 0 and "is finished" in again.stderr
    other = distill(recipe, f"distillation.method={method}", "distillation.steps=5")
    assert other.exit_code == 2
    assert "distillation.steps=5 but" in other.stderr and "begun with 4" in other.stderr
    assert "run.name=other" in other.stderr and f"--resume {run}" in other.stderr


def test_a_killed_job_goes_on_to_the_student_of_an_undisturbed_one(tiny_folder: Path, tmp_path: Path) -> None:
    settings = {"method": "consistency", "steps": 30, "save_every": 2, "ema_decay": 0.9}
    recipe = job_file(tmp_path, tiny_folder, [{}], distillation=settings, evaluation={"steps_compared": [1]})
    process = subprocess.Popen(
        [sys.executable, "-m", "fedkd.cli.main", "distill", str(recipe), "run.name=killed"],
        cwd=ROOT, stderr=subprocess.DEVNULL, env={**os.environ, "OMP_NUM_THREADS": "1"},
    )  # fmt: skip
    run = tmp_path / "runs" / "killed"
    whole = distill(recipe, "run.name=whole")
    assert whole.exit_code == 0, whole.output
    while not (run / "state.safetensors").is_file():
        assert process.poll() is None, "the job ended before it saved a state"
        time.sleep(0.01)
    os.kill(process.pid, signal.SIGKILL)
    process.wait()
    assert not (run / "student.safetensors").exists()
    assert not (run / "checkpoint").exists()
    resumed = distill("--resume", run)
    assert resumed.exit_code == 0, resumed.output
    students = [(tmp_path / "runs" / name / "student.safetensors").read_bytes() for name in ("killed", "whole")]
    assert students[0] == students[1]


@pytest.mark.parametrize(
    ("overrides", "named"),
    [
        (["distillation.gamma=1.5"], "distillation.gamma=1.5 is out of range; give a value from 0 to 1"),
        (["teachers=[{weight: 2}]"], "teachers[0].weight=2.0 is out of range"),
        (["distillation.progressive.start_steps=12"], "distillation.progressive.start_steps=12 is no power of two"),
        (["distillation.method=progresive"], "did you mean 'progressive'"),
        (["teachers=[{adapter: nowhere.safetensors}]"], "teachers[0].adapter=nowhere.safetensors does not exist"),
        (["teachers=[{checkpoint: 'student:v9'}]"], "teachers[0].checkpoint=student:v9: no v9 version"),
        (["teachers=[]"], "teachers is empty"),
        (["data.path=nowhere.txt"], "data.path=nowhere.txt cannot be read"),
        (["data.source=folder", "data.path=pictures"], "data.caption_column=caption"),
        (["data.source=table"], "data.caption_column=caption: data.source="),
        (["evaluation.classifier=nowhere"], "nowhere"),
        (["model.path=nowhere"], "model.path=nowhere does not exist"),
        (["run.tracker=tensorbord"], "did you mean 'tensorboard'"),
        (["distillation.mixed_precision=fp16"], "distillation.mixed_precision=fp16 needs a GPU"),
    ],
    ids=lambda value: value[0] if isinstance(value, list) else "",
)
def test_a_mistake_is_one_line_before_anything_is_trained(
    overrides: list[str], named: str, tiny_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "pictures").mkdir()
    (tmp_path / "pictures" / "metadata.csv").write_text("file_name,words\na.png,a red zero\n")
    (tmp_path / "table").mkdir()
    (tmp_path / "table" / "train.csv").write_text("image,words\na.png,a red zero\n")
    if "data.source=table" in overrides:
        overrides = [f"data.source={tmp_path / 'table'}", "data.split=train"]
    result = distill(job_file(tmp_path, tiny_folder, [{}]), *overrides)
    assert result.exit_code == 2, result.output
    assert result.stderr.startswith("error: ") and named in result.stderr
    assert len(result.stderr.splitlines()) == 1
    assert not (tmp_path / "runs" / "job" / "state.safetensors").exists()


def test_the_recipe_s_kind_decides_the_verb(tiny_folder: Path, tmp_path: Path) -> None:
    recipe = job_file(tmp_path, tiny_folder, [{}])
    for verb in ("simulate", "pretrain"):
        result = CliRunner().invoke(app, [verb, str(recipe)])
        assert result.exit_code == 2 and f"fedkd distill {recipe}" in result.stderr
    result = distill("quickstart")
    assert result.exit_code == 2 and "fedkd simulate quickstart" in result.stderr


def test_a_folder_in_use_is_left_alone(tiny_folder: Path, tmp_path: Path) -> None:
    recipe = job_file(tmp_path, tiny_folder, [{}])
    (tmp_path / "runs" / "job").mkdir(parents=True)
    (tmp_path / "runs" / "job" / "mine.txt").write_text("x")
    result = distill(recipe)
    assert result.exit_code == 2 and "run.name=other" in result.stderr


def test_a_teacher_can_be_a_version_in_the_registry(tiny_folder: Path, tmp_path: Path) -> None:
    from fedkd.checkpoints.registry import Registry
    from fedkd.cli.distill import resolver
    from fedkd.distillation.jobs.faculty import assemble
    from fedkd.models.pipeline import load_pipeline

    published = Registry(tmp_path / "registry").publish(tiny_folder, name="tiny")
    teachers = [{"name": "elder", "checkpoint": published.reference}]
    recipe = job(tmp_path, tiny_folder, teachers, f"run.registry={tmp_path / 'registry'}")
    faculty = assemble(recipe, load_pipeline(str(tiny_folder)), resolver(recipe))
    assert faculty.names == ["elder"] and list(faculty.modules) == ["elder"]
    assert faculty.origin == {"elder": "tiny:v0"}
