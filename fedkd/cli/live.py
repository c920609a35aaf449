"""A running federation on the terminal: rounds, phases, nodes, bytes, losses, and the table at the end."""

from __future__ import annotations

import json
import time
from pathlib import Path
from types import TracebackType
from typing import Any

from rich.console import Console, Group, RenderableType
from rich.live import Live
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TaskID, TextColumn, TimeElapsedColumn
from rich.table import Table

from fedkd.cli.live_board import LEFT_OUT, Board

WORDS = {
    "base": "measure the base",
    "describe": "describe",
    "refresh": "refresh the edges",
    "synthesise": "users synthesise",
    "finetune": "edges fine-tune",
    "replay": "draw replay",
    "distil": "distil the student",
    "publish": "publish",
    "redistribute": "redistribute",
}
ROWS = 12  # nodes that a terminal shows at once


class RunView:
    """Follows RUN/progress.jsonl: a line for each finished phase; on a terminal also a bar and the nodes' states."""

    def __init__(self, console: Console, run: Path, *, resume: bool = False) -> None:
        self.console, self.run, self.log = console, run, run / "progress.jsonl"
        self.place = self.log.stat().st_size if resume and self.log.is_file() else 0
        columns = (
            TextColumn("{task.description}"), BarColumn(bar_width=24), MofNCompleteColumn(),
            TextColumn("{task.fields[loss]}"), TimeElapsedColumn(),
        )  # fmt: skip
        self.bars = Progress(*columns, console=console, disable=not console.is_terminal)
        self.board = Board()
        self.live = Live(get_renderable=self.picture, console=console, transient=True, refresh_per_second=4)
        self.task: TaskID | None = None
        self.title = ""

    def __enter__(self) -> RunView:
        if self.console.is_terminal:
            self.live.start()
        self.show("starting Flower")
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, _: TracebackType | None) -> None:
        if self.console.is_terminal:
            self.live.stop()

    def picture(self) -> RenderableType:
        """What a terminal shows below the lines: the bar, and the nodes of the phase under way."""
        return Group(self.bars, node_table(self.board, self.run))

    def show(self, title: str) -> None:
        """Begin a bar under a new title."""
        if self.task is not None:
            self.bars.remove_task(self.task)
        self.title, self.task = title, self.bars.add_task(title, total=None, loss="")

    def phase(self, title: str) -> None:
        """A phase of the command's own, after the federation."""
        self.console.print(f"  {title}", markup=False)
        self.show(title)

    def progress(self, done: int, total: int) -> None:
        """Move the bar."""
        if self.task is not None:
            loss = "" if self.board.loss is None else f"loss {self.board.loss:.4g}"
            self.bars.update(self.task, completed=done, total=total, loss=loss)

    def update(self) -> None:
        """Show the events written since the last call."""
        if not self.log.is_file():
            return
        with self.log.open("rb") as stream:
            stream.seek(self.place)
            lines = stream.read().split(b"\n")
            self.place += sum(len(line) + 1 for line in lines[:-1])
        for line in lines[:-1]:
            try:
                event = json.loads(line)
                self.board.take(event)
                self.event(event)
            except (ValueError, KeyError, TypeError):
                continue

    def event(self, event: dict[str, Any]) -> None:
        """One event of the log."""
        kind, phase = event["event"], str(event.get("phase", ""))
        words = WORDS.get(phase, phase)
        if kind == "round_start":
            self.console.print(f"round {event['round']} of {event['rounds']}", markup=False)
        elif kind == "waiting":
            self.show(f"waiting for nodes: {event['nodes']} of {event['expected']}")
        elif kind == "phase_start":
            self.show(words)
        elif kind == "progress":
            if not self.title.startswith(words):
                self.show(words)
            self.progress(int(event["done"]), int(event["total"]))
        elif kind == "phase_end":
            self.finished(words, event)

    def finished(self, words: str, event: dict[str, Any]) -> None:
        """A finished phase: seconds, who answered, bytes, last loss, who was left out."""
        line = f"  {words:<20}{event['seconds']:7.1f} s"
        if event.get("asked"):
            up, down = event["bytes"]["up"] / 1e6, event["bytes"]["down"] / 1e6
            line += f"   {event['answered']}/{event['asked']} nodes   {up:.2f} MB up   {down:.2f} MB down"
        elif event.get("phase") == "distil" and self.board.loss is not None:
            line += f"   loss {self.board.loss:.4g}"
        self.console.print(line, markup=False)
        for left in event.get("left_out", []):
            self.console.print(f"    left out {left['node']}: {left['reason']}", markup=False)


def node_table(board: Board, run: Path) -> Table:
    """The nodes of the phase under way: state, how far they say they are, bytes of the whole run."""
    table = Table(box=None, pad_edge=False, padding=(0, 2, 0, 2))
    shown, more = board.shown(ROWS)
    if not shown:
        return table
    for column, side in (("node", "left"), ("state", "left"), ("step", "right"), ("up", "right"), ("down", "right")):
        table.add_column(column, justify=side, no_wrap=column != "state")  # type: ignore[arg-type]
    for name, node in shown:
        state = f"{node.state} in {WORDS.get(node.phase, node.phase)}" if node.state == LEFT_OUT else node.state
        up, down = f"{node.up / 1e6:.2f} MB", f"{node.down / 1e6:.2f} MB"
        table.add_row(*(plain(text) for text in (name, state, step_of(run, name, board.phase), up, down)))
    if more:
        table.add_row(plain(more), "", "", "", "")
    return table


def plain(text: str) -> Any:
    """Text that is no markup, whatever a node calls itself."""
    from rich.text import Text

    return Text(text)


def step_of(run: Path, name: str, phase: str) -> str:
    """How far a node of a simulation is, by the file that it keeps; '' when it says nothing."""
    if "/" in name or name.startswith("."):
        return ""
    try:
        facts = json.loads((run / "nodes" / name / "progress.json").read_text(encoding="utf-8"))
        return f"{int(facts['done'])}/{int(facts['total'])}" if facts["phase"] == phase else ""
    except (OSError, ValueError, KeyError, TypeError):
        return ""


def follow(view: RunView, rounds: int, patience_s: float, poll_s: float = 0.5) -> str:
    """Show a run that another process carries out until it ends: 'finished', 'failed', or 'silent'.

    It is silent when it has written nothing for `patience_s` seconds: killed, or at a very long step.
    """
    from server.state import PHASES, RunState

    state = RunState(view.run)
    while True:
        view.update()
        if state.finished(rounds, PHASES[-1]) is not None:
            view.update()  # what was written between the two looks
            return "finished"
        if view.board.failed:
            return "failed"
        last = view.log.stat().st_mtime if view.log.is_file() else (view.run / "recipe.yaml").stat().st_mtime
        if time.time() - last > patience_s:
            return "silent"
        time.sleep(poll_s)


def percent(value: float | None) -> str:
    """A share as a percentage, or a dash."""
    return "–" if value is None else f"{100 * value:.0f}%"


def summarise(console: Console, report: dict[str, Any], split: dict[str, Any]) -> None:
    """The closing table: base, edges and student on known and taught concepts; bytes moved; what was served."""
    from fedkd.evaluation.report_rows import checkpoint_words

    table = Table(title="prompt accuracy")
    for column in ("model", "all", "known", "taught"):
        table.add_column(column, justify="left" if column == "model" else "right")
    rows = [("base", report.get("base"))]
    rows += [(edge["name"], edge) for edge in report["edges"]]
    rows += [("student", report.get("student"))]
    for name, scores in rows:
        if scores:
            table.add_row(name, *(percent(scores[key]) for key in ("accuracy", "known", "taught")))
    console.print(table)
    for item in report["rounds"]:
        if words := checkpoint_words(item.get("checkpoint_bytes")):
            console.print(f"round {item['round']}: {words}", markup=False)
    equal = sum(image["bitwise_equal"] for image in split["images"])
    served = report["checkpoint"]
    console.print(
        f"{equal} of {len(split['images'])} split pictures are bit for bit the unsplit pipeline's; "
        f"served {served['name']}:{served['version']}",
        markup=False,
    )
