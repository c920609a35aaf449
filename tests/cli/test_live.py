"""The view of a run: plain lines off a terminal, nodes and bars on one, and attaching to a run from elsewhere."""

from __future__ import annotations

import io
import os
import threading
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console
from typer.testing import CliRunner

from fedkd.cli.live import RunView, follow, node_table
from fedkd.cli.live_board import Board
from fedkd.cli.main import app
from fedkd.recipe import load_recipe, save_recipe
from server.state import RunState

LEDGER = [{"node": f"user-{index}", "up": 1000 * index, "down": 100, "registry": 0} for index in range(20)]


@pytest.fixture()
def run(tmp_path: Path) -> Path:
    folder = tmp_path / "runs" / "small"
    save_recipe(load_recipe("quickstart", ["federation.rounds=1"]), folder / "recipe.yaml")
    return folder


def events(run: Path) -> RunState:
    """A round whose users have just answered, but for one."""
    state = RunState(run)
    state.event("round_start", round=1, rounds=1)
    state.event("phase_start", round=1, phase="synthesise", nodes=[f"user-{index}" for index in range(20)])
    state.event("answered", round=1, phase="synthesise", node="user-3")
    state.event("progress", round=1, phase="synthesise", done=1, total=20)
    return state


def end(state: RunState) -> None:
    left = [{"node": "user-7", "reason": "no [bold]disk[/bold]"}]
    facts: dict[str, Any] = {"seconds": 1.5, "asked": 20, "answered": 19, "bytes": {"up": 190_000, "down": 2000}}
    state.event("phase_end", round=1, phase="synthesise", left_out=left, ledger=LEDGER, **facts)
    state.event("phase_start", round=1, phase="distil", nodes=[])
    state.event("progress", round=1, phase="distil", done=3, total=9, loss=0.125)
    state.event("phase_end", round=1, phase="distil", seconds=2.0, asked=0, answered=0, bytes={"up": 0, "down": 0})
    state.finish(1, "redistribute", {})


def view_of(run: Path, terminal: bool = False) -> tuple[RunView, io.StringIO]:
    out = io.StringIO()
    return RunView(Console(file=out, force_terminal=terminal, width=100, highlight=False), run), out


def test_off_a_terminal_there_are_plain_lines_with_bytes_reasons_and_losses(run: Path) -> None:
    end(events(run))
    view, out = view_of(run)
    with view:
        assert follow(view, 1, patience_s=60) == "finished"
    text = out.getvalue()
    assert "\x1b" not in text and text.startswith("round 1 of 1\n")
    assert "19/20 nodes   0.19 MB up   0.00 MB down" in text
    assert "left out user-7: no [bold]disk[/bold]" in text and "loss 0.125" in text


def test_a_terminal_shows_each_node_with_its_state_steps_and_bytes(run: Path) -> None:
    state = events(run)
    view, out = view_of(run, terminal=True)
    (run / "nodes" / "user-0").mkdir(parents=True)
    (run / "nodes" / "user-0" / "progress.json").write_text('{"phase": "synthesise", "done": 4, "total": 9}')
    with view:
        view.update()
        Console(file=out, width=100).print(view.picture())
        assert "user-0" in out.getvalue() and "4/9" in out.getvalue() and "and 8 more" in out.getvalue()
        end(state)
        view.update()
    Console(file=out, width=100).print(node_table(view.board, run))
    assert "left out in users synthesise" in out.getvalue()
    assert (view.board.nodes["user-19"].up, view.board.up, view.board.loss) == (19_000, 190_000, 0.125)


def test_a_torn_or_strange_line_changes_nothing(run: Path) -> None:
    events(run)
    with (run / "progress.jsonl").open("a") as stream:
        stream.write('{"time": 1}\n[1]\n{"event": "phase_e')
    view, _ = view_of(run)
    view.update()
    assert view.board.nodes["user-3"].state == "answered" and view.board.nodes["user-4"].state == "asked"


def test_a_run_that_failed_and_was_resumed_goes_on() -> None:
    board = Board()
    board.take({"event": "failed", "error": "quorum"})
    assert board.failed == "quorum"
    board.take({"event": "round_start", "round": 1, "rounds": 2})
    assert board.failed == ""


def test_watch_attaches_to_a_run_and_ends_with_it(run: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(run.parents[1])
    state = events(run)
    timer = threading.Timer(0.7, end, [state])
    timer.start()
    done = CliRunner().invoke(app, ["watch", "small"])
    timer.join()
    assert done.exit_code == 0 and "19/20 nodes" in done.stderr and "fedkd report runs/small" in done.stderr


def test_watch_leaves_a_run_that_stopped_or_fell_silent(run: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(run.parents[1])
    state = events(run)
    old = (run / "progress.jsonl").stat().st_mtime - 100
    os.utime(run / "progress.jsonl", (old, old))
    done = CliRunner().invoke(app, ["watch", "small", "--patience", "50"])
    assert done.exit_code == 1 and "is silent" in done.stderr
    state.event("failed", error="the quorum does not hold")
    done = CliRunner().invoke(app, ["watch", "small"])
    assert done.exit_code == 1 and "the run stopped: the quorum does not hold" in done.stderr
    assert CliRunner().invoke(app, ["watch", "smal"]).exit_code == 2
