"""`fedkd plan offload`: the optimum as table, JSON and plot, and one line for every mistake."""

import json

import pytest
import typer
from typer.testing import CliRunner

from fedkd.cli.benchmarks import papers_oqc, planning_offload
from fedkd.cli.benchmarks.request import Request
from fedkd.cli.plan_offload import offload

app = typer.Typer()
app.command("offload")(offload)
app.command("other")(lambda: None)  # so that `offload` stays a subcommand


def run(*arguments: str):
    return CliRunner().invoke(app, ["offload", *arguments])


def test_the_table_has_the_proven_optimum_beside_the_other_methods():
    result = run("--users", "30", "--edge-steps", "100", "--compare")
    assert result.exit_code == 0, result.output
    rows = {line.split("  ")[0]: line for line in result.output.splitlines()}
    assert "-17.753943" in rows["dual"] and "-17.753943" in rows["milp"] and "100 of 100" in rows["dp"]
    assert rows["sca from half"].split()[4] == "-"


def test_json_has_everything_and_plots_are_written(tmp_path):
    result = run("--edge-steps", "200", "--json", "--plot", str(tmp_path / "front.svg"))
    facts = json.loads(result.output)
    assert facts["objective"] == pytest.approx(-18.323904, abs=1e-6)
    assert facts["gap"] == 0 and facts["edge_steps"] <= facts["edge_budget_steps"] == 200
    assert sum(s for s, there in zip(facts["steps"], facts["at_edge"], strict=True) if there) == facts["edge_steps"]
    assert "<svg" in (tmp_path / "front.svg").read_text()


def test_a_problem_comes_from_a_file_and_options_go_before_it(tmp_path):
    path = tmp_path / "mine.yaml"
    path.write_text("error_decay: [0.1, 0.2]\nutility_growth: [0.2, 0.1]\nedge_budget_steps: 5\nedge_hz: [1e9, 2e9]\n")
    assert json.loads(run(str(path), "--json").output)["edge_steps"] <= 5
    assert json.loads(run(str(path), "--json", "--edge-steps", "40").output)["offloaded"] == 2


def test_the_example_is_a_file_to_start_from(tmp_path):
    path = tmp_path / "mine.yaml"
    path.write_text(run("--example").output)
    facts = json.loads(run(str(path), "--json").output)
    assert facts["users"] == 3 and 0 < facts["offloaded"] < 3 and facts["edge_steps"] <= 30


@pytest.mark.parametrize(
    ("text", "named"),
    [
        ("error_decays: [1]", "error_decay"),
        ("error_decay: [0.1]\nutility_growth: [0.1]", "lacks edge_budget_steps"),
        ("error_decay: [.nan]\nutility_growth: [0.1]\nedge_budget_steps: 3", "error_decay[0]=nan"),
        ("error_decay: [", "cannot be read as YAML or JSON"),
        ("[1, 2]", "holds no fields"),
    ],
)
def test_a_wrong_file_is_one_line_and_status_2(tmp_path, text, named):
    path = tmp_path / "mine.yaml"
    path.write_text(text)
    result = run(str(path))
    assert result.exit_code == 2
    assert result.stderr.startswith("error: ") and named in result.stderr and result.stderr.count("\n") == 1


@pytest.mark.parametrize(
    ("arguments", "named"),
    [
        (["--users", "0"], "users=0"),
        (["--edge-steps", "-3"], "edge_budget_steps=-3"),
        (["--method", "magic"], "method='magic'"),
        (["--least-steps", "25"], "give at most 20"),
        (["--plot", "front.pdf"], ".pdf"),
        (["nowhere.yaml"], "nowhere.yaml cannot be read as YAML or JSON"),
    ],
)
def test_a_wrong_option_is_one_line_and_status_2(arguments, named):
    result = run(*arguments)
    assert result.exit_code == 2
    assert result.stderr.startswith("error: ") and named in result.stderr and result.stderr.count("\n") == 1


def test_help_teaches_with_an_example():
    assert "Example: fedkd plan offload --users 30" in run("--help").output


def test_the_paper_s_figures_keep_their_shapes():
    tables, shows = papers_oqc.tables_and_shows(Request("papers", quick=True))
    assert [table.title.split(":")[0] for table in tables] == [
        f"OQC Fig. {each}" for each in ("1(a)", "1(b)", "1(c)", "2")
    ]
    assert all(shown.holds for shown in shows), [shown.line for shown in shows]
    assert papers_oqc.notes(Request("papers"))


def test_the_benchmark_s_promises_hold_in_its_quick_form(monkeypatch):
    monkeypatch.setattr(planning_offload, "BUDGETS", (300,))
    monkeypatch.setattr(
        planning_offload, "EXACT", {users: figures[2:] for users, figures in planning_offload.EXACT.items()}
    )
    monkeypatch.setattr(planning_offload, "LARGE", 100_000)
    tables, shows = planning_offload.tables_and_shows(Request("planning", quick=True))
    assert [table.title.split(":")[0] for table in tables] == [f"Offload, {n} users" for n in (30, 1000, 10_000)]
    assert {"dual", "dp", "milp", "sca", "random"} <= set(tables[0].rows)
    timeless = [shown for shown in shows if "seconds" not in shown.what]
    assert len(timeless) == len(shows) - 2
    assert all(shown.holds for shown in timeless), [shown.line for shown in shows]
