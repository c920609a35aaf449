"""A running federation on the terminal: rounds, phases, progress, and the table at the end."""

from __future__ import annotations

import json
import time
from pathlib import Path
from types import TracebackType
from typing import Any

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TaskID, TextColumn, TimeElapsedColumn
from rich.table import Table

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


class RunView:
    """Follows RUN/progress.jsonl: a line for each finished phase, a live bar for the one under way."""

    def __init__(self, console: Console, run: Path, *, resume: bool = False) -> None:
        self.console, self.log = console, run / "progress.jsonl"
        self.place = self.log.stat().st_size if resume and self.log.is_file() else 0
        columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn())
        self.bars = Progress(*columns, console=console, transient=True, disable=not console.is_terminal)
        self.task: TaskID | None = None
        self.title = ""
        self.begun = time.monotonic()

    def __enter__(self) -> RunView:
        self.bars.start()
        self.show("starting Flower")
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, _: TracebackType | None) -> None:
        self.bars.stop()

    def show(self, title: str) -> None:
        """Begin a bar under a new title."""
        if self.task is not None:
            self.bars.remove_task(self.task)
        self.title, self.task = title, self.bars.add_task(title, total=None)

    def phase(self, title: str) -> None:
        """A phase of the command's own, after the federation."""
        self.console.print(f"  {title}", markup=False)
        self.show(title)

    def progress(self, done: int, total: int) -> None:
        """Move the bar."""
        if self.task is not None:
            self.bars.update(self.task, completed=done, total=total)

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
                self.event(json.loads(line))
            except (ValueError, KeyError):
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
        """A finished phase: seconds, who answered, bytes, who was left out."""
        line = f"  {words:<20}{event['seconds']:7.1f} s"
        if event.get("asked"):
            up, down = event["bytes"]["up"] / 1e6, event["bytes"]["down"] / 1e6
            line += f"   {event['answered']}/{event['asked']} nodes   {up:.2f} MB up   {down:.2f} MB down"
        self.console.print(line, markup=False)
        for left in event.get("left_out", []):
            self.console.print(f"    left out {left['node']}: {left['reason']}", markup=False)


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
