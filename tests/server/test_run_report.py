"""The report of a run from its folder: finished, stopped halfway, its audit log tampered with."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest

from fedkd.checkpoints.audit_chain import LOG_NAME
from fedkd.cli.benchmarks.scale_run import ASKING, Size, cost_of
from fedkd.recipe import RecipeError, save_recipe
from server.run_report import write_run_report
from tests.server.conftest import Done


@pytest.fixture()
def run(undisturbed: Done, tmp_path: Path) -> Path:
    """A copy of a finished run with its recipe, without what its nodes keep."""
    copy = tmp_path / "small"
    shutil.copytree(undisturbed.run, copy, ignore=shutil.ignore_patterns("nodes"))
    save_recipe(undisturbed.recipe, copy / "recipe.yaml")
    return copy


def report_of(run: Path, **facts: Any) -> dict[str, Any]:
    page = write_run_report(run, **facts)
    assert page == run / "report.html" and "</html>" in page.read_text()
    return dict(json.loads((run / "report.json").read_text()))


def test_a_finished_run_has_its_lineage_bytes_and_a_sound_audit_log(run: Path) -> None:
    drawn: list[str] = []
    report = report_of(run, draw=drawn.append, started="2030-01-01")
    assert report["status"] == {"state": "finished"} and report["started"] == "2030-01-01"
    assert [version["reference"] for version in report["lineage"]] == ["tiny:v2", "tiny:v1", "tiny:v0"]
    assert report["lineage"][0]["parents"] == ["tiny:v1"] and report["lineage"][0]["edges"] == ["edge-0", "edge-1"]
    assert 0 < report["lineage"][0]["fetch_bytes"] < report["lineage"][0]["size_bytes"]
    assert report["audit"]["verified"] and report["audit"]["lines"] > 8
    assert drawn == ["tiny:v2"] and report["pictures_of"] == "tiny:v2"
    assert all((run / entry["student"]).is_file() for entry in report["pictures"])
    again = report_of(run, draw=drawn.append)
    assert len(drawn) == 1 and again["pictures"] == report["pictures"] and again["started"] == "2030-01-01"


def test_a_run_that_was_killed_says_how_far_it_came(run: Path) -> None:
    for phase in ("distil", "publish", "redistribute"):
        (run / "state" / "round-002" / f"{phase}.json").unlink()
    report = report_of(run)
    assert (report["status"]["state"], report["status"]["round"], report["status"]["phase"]) == (
        "unfinished", 2, "distil",
    )  # fmt: skip
    assert report["lineage"][0]["reference"] == "tiny:v1" and "not finished" in (run / "report.html").read_text()
    (run / "error.json").write_text(json.dumps({"error": "quorum <b>", "type": "QuorumError", "defect": False}))
    assert report_of(run)["status"]["why"] == "quorum <b>"
    assert "quorum &lt;b&gt;" in (run / "report.html").read_text()


def test_pictures_of_an_earlier_student_are_not_shown(run: Path) -> None:
    (run / "report.json").write_text(json.dumps({"pictures": [{"kind": "taught"}], "pictures_of": "tiny:v1"}))
    assert "pictures" not in report_of(run)


def test_a_tampered_audit_log_is_on_the_page(run: Path) -> None:
    log = run / LOG_NAME
    log.write_text(log.read_text().replace('"alias":"latest"', '"alias":"laTest"', 1))
    report = report_of(run)
    assert not report["audit"]["verified"] and report["audit"]["problem"].startswith("line ")
    assert "The log does not hold" in (run / "report.html").read_text()


def test_a_folder_without_a_run_is_refused(tmp_path: Path) -> None:
    with pytest.raises(RecipeError, match=r"no recipe\.yaml"):
        write_run_report(tmp_path)


def test_the_scale_benchmark_reads_a_rounds_cost_from_its_run(run: Path) -> None:
    cost = cost_of(Size(users=4, edges=2, pictures=4), run, 9.0)
    assert set(cost.cpu_s) == {*ASKING, "distil", "publish"} and 0 < cost.working_s < cost.cloud_s
    assert cost.messages == 6 + 2 + 4 + 2 + 2  # describe, refresh, synthesise, finetune, redistribute
    assert 0 < cost.up < cost.disk_bytes and cost.down > 0 and cost.round_s > 0 and cost.wall_s == 9.0
    assert 10**8 < cost.peak_bytes < 10**11
