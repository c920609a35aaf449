"""A distillation job on the terminal: what is being done, loss and time left, and the table at the end."""

from __future__ import annotations

import time
from pathlib import Path
from types import TracebackType
from typing import Any

from rich.console import Console
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    TaskID,
    TextColumn,
    TimeRemainingColumn,
)
from rich.table import Table

from fedkd.cli.live import percent

LINES = 10  # off a terminal so many lines are written of a piece of work


class JobView:
    """One bar for the work under way; off a terminal, a line now and then."""

    def __init__(self, console: Console) -> None:
        self.console, self.live = console, console.is_terminal
        columns = (
            TextColumn("{task.description}"), BarColumn(bar_width=12), MofNCompleteColumn(),
            TextColumn("{task.fields[loss]}"), TimeRemainingColumn(compact=True), TextColumn("left"),
        )  # fmt: skip
        self.bars = Progress(*columns, console=console, transient=True, disable=not self.live)
        self.task: TaskID | None = None
        self.title, self.loss, self.reached = "", "", -1
        self.begun, self.first = time.monotonic(), 0

    def __enter__(self) -> JobView:
        self.bars.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, _: TracebackType | None) -> None:
        self._end()
        self.bars.stop()

    def begin(self, title: str) -> None:
        """A piece of work begins; the one before is done."""
        self._end()
        self.title, self.loss, self.reached = title, "", -1
        self.begun = time.monotonic()
        self.task = self.bars.add_task(title, total=None, loss="")

    def _end(self) -> None:
        if self.task is None:
            return
        self.bars.remove_task(self.task)
        self.task = None
        if self.live:
            self.say(f"{self.title:<40}{time.monotonic() - self.begun:8.1f} s")

    def losses(self, losses: dict[str, float]) -> None:
        """The losses of the step just done: the first is shown."""
        self.loss = f"loss {losses['loss']:.4g}" if "loss" in losses else ""

    def progress(self, done: int, total: int) -> None:
        """Move the bar, or write a line at every tenth."""
        if self.live and self.task is not None:
            self.bars.update(self.task, completed=done, total=total, loss=self.loss)
            return
        if self.reached < 0:
            self.say(self.title)
            # A resumed run does not begin at 0.
            self.first, self.reached = done - 1, LINES * (done - 1) // total
        if LINES * done // total == self.reached:
            return
        self.reached = LINES * done // total
        spent = time.monotonic() - self.begun
        left = spent / max(1, done - self.first) * (total - done)
        self.say(f"  {done}/{total}  {self.loss + '  ' if self.loss else ''}{spent:.0f} s, {left:.0f} s left")

    def say(self, line: str) -> None:
        """A line that stays."""
        self.console.print(line, markup=False, soft_wrap=True)


def summarise(console: Console, report: dict[str, Any], run: Path) -> None:
    """The closing table: student and teacher at each step count; then where everything is."""
    from fedkd.cli.run_folder import shown

    rows = [row for row in report["steps"] if row["accuracy"] is not None]
    if rows:
        table = Table(title="prompt accuracy (*: the student was made for it)")
        counts = sorted({row["steps"] for row in rows})
        table.add_column("steps")
        for steps in counts:
            table.add_column(str(steps), justify="right")
        for model in dict.fromkeys(row["model"] for row in rows):
            at = {row["steps"]: row for row in rows if row["model"] == model}
            cells = [percent(at[s]["accuracy"]) + ("*" if at[s]["made_for"] else "") if s in at else "" for s in counts]
            table.add_row(model, *cells)
        console.print(table)
    seconds = ", ".join(f"{phase} {value:.0f} s" for phase, value in report["seconds"].items())
    console.print(
        f"{report['method']} student from {len(report['teachers'])} teacher(s): {seconds}", markup=False, soft_wrap=True
    )
    student = report["student"]
    files = [student["checkpoint"], student["lora"], "samples", "report.json"]
    console.print("in " + shown(run) + ": " + ", ".join(name for name in files if name), markup=False, soft_wrap=True)
