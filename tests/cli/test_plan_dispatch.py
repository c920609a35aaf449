"""`fedkd plan dispatch`, and what `fedkd bench dispatch` is made of."""

import json
from pathlib import Path

import pytest
from typer.testing import CliRunner

from fedkd.cli.benchmarks import dispatch, dispatch_learned, dispatch_rules, dispatch_sweeps
from fedkd.cli.benchmarks.request import Request
from fedkd.cli.main import app
from fedkd.planning.machines import PlanningError

SMALL = ["plan", "dispatch", "edges=4", "slots=8", "tasks=12", "--episodes", "2"]


def test_schedulers_stand_side_by_side_with_their_bound(tmp_path: Path) -> None:
    plot = tmp_path / "tail.png"
    found = CliRunner().invoke(app, [*SMALL, "--schedulers", "social,jsq", "--plot", str(plot)])
    assert found.exit_code == 0, found.output
    assert "social" in found.output and "greedy oracle" in found.output and "no schedule" in found.output
    assert plot.stat().st_size > 1000


def test_json_has_every_figure() -> None:
    found = CliRunner().invoke(app, [*SMALL, "--schedulers", "all", "--json"])
    facts = json.loads(found.output)
    assert facts["schedulers"]["social"]["mean_s"] >= facts["lower_bound_s"]
    assert facts["schedulers"]["greedy oracle (in-slot)"]["beside_oracle"] == 1


def test_a_trained_policy_stands_beside_the_schedulers(tmp_path: Path) -> None:
    policy = str(tmp_path / "mine")
    small = ["edges=4", "slots=6", "tasks=8"]
    trained = CliRunner().invoke(app, ["plan", "dispatch-train", *small, "--episodes", "2", "--same", "--out", policy])
    assert trained.exit_code == 0, trained.output
    found = CliRunner().invoke(app, [*SMALL, "edges=5", "--schedulers", "social", "--policy", policy, "--json"])
    assert json.loads(found.output)["schedulers"]["learned:mine"]["mean_s"] > 0


@pytest.mark.parametrize(
    ("arguments", "named"),
    [
        (["edge=4"], "edges"),
        (["capacity=10"], "capacity=10,50"),
        (["tasks=many"], "tasks=50"),
        (["--schedulers", "sosial"], "social"),
        (["--information", "all"], "slot-start"),
        (["--policy", "nowhere"], "nowhere"),
    ],
)
def test_a_mistake_is_one_line(arguments: list[str], named: str) -> None:
    found = CliRunner().invoke(app, [*SMALL, *arguments])
    assert found.exit_code == 2
    assert named in found.output and "Traceback" not in found.output


def test_the_sweeps_change_one_thing_each() -> None:
    usual = dispatch_sweeps.setting("N", 50)
    for axis, (_, points) in dispatch_sweeps.AXES.items():
        assert dispatch_sweeps.setting(axis, points[0]) != usual
    assert dispatch_sweeps.setting("f", 70).cluster().load < usual.cluster().load


def test_the_benchmark_knows_its_parts() -> None:
    with pytest.raises(PlanningError, match="only=rules"):
        dispatch.run(Request("dispatch", overrides=["only=nothing"]))


def test_the_standard_error_is_that_of_a_mean() -> None:
    assert dispatch_rules.error([1.0, 3.0]) == pytest.approx(1.0)


def test_a_curve_has_settled_where_it_stays_near_its_last_point() -> None:
    curve = {"10": [1.02], "20": [1.5], "40": [1.01], "60": [1.0]}
    table = dispatch_learned.beside_the_paper({"sac": curve}, list(curve), {"sac": 0.5})
    assert table.rows["sac"]["settled at"] == [40]
    assert table.rows["sac"]["paper: converged at"] == [200]
