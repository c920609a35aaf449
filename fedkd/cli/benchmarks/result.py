"""What every benchmark leaves: tables, and a JSON and Markdown page with its bounds, and a plot."""

from __future__ import annotations

import json
import math
import os
import platform
import statistics
from dataclasses import asdict, dataclass, field
from pathlib import Path

Rows = dict[str, dict[str, list[float]]]


@dataclass(frozen=True)
class Shown:
    """One promise: `value` against `bound`, and whether it holds; `what` says at least or at most."""

    what: str
    value: float
    bound: float
    holds: bool

    @property
    def line(self) -> str:
        """The promise as a line of text."""
        return f"{'holds' if self.holds else 'FAILS'}: {self.what}: {self.value:.3g} (bound {self.bound:g})"


def at_least(what: str, value: float, bound: float) -> Shown:
    """A promise that fails when the value is not a number."""
    value = float(value)  # numpy's own numbers and truths are none to JSON
    return Shown(f"{what}, at least", value, bound, value >= bound)


def at_most(what: str, value: float, bound: float) -> Shown:
    """A promise that fails when the value is not a number."""
    value = float(value)  # numpy's own numbers and truths are none to JSON
    return Shown(f"{what}, at most", value, bound, value <= bound)


@dataclass
class Table:
    """Figures: one row a method, {column: value a seed}.

    Shares 0..1 are shown in percent, except in `plain` tables and columns, with `digits` decimals. `chart`:
    "bars" (a group a column), or "lines" over columns that are numbers; `across` names that axis.
    """

    title: str
    columns: list[str]
    rows: Rows
    plain: bool = False
    plain_columns: list[str] = field(default_factory=list)
    digits: int = 1
    chart: str = ""
    across: str = ""

    def scale(self, column: str) -> float:
        """What a value is multiplied with when it is shown."""
        return 1.0 if self.plain or column in self.plain_columns else 100.0

    def cell(self, row: str, column: str) -> str:
        """Mean ± standard deviation over seeds; '-' where nothing was measured."""
        values = [self.scale(column) * v for v in self.rows[row].get(column, []) if math.isfinite(v)]
        if not values:
            return "-"
        sd = f" ± {statistics.stdev(values):.{self.digits}f}" if len(values) > 1 else ""
        return f"{statistics.mean(values):.{self.digits}f}{sd}"


@dataclass
class Result:
    """A benchmark's figures, its promises (`shows`), and what else is to be said of them."""

    name: str
    command: str
    seeds: list[int]
    tables: list[Table]
    shows: list[Shown] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)


def machine() -> dict[str, object]:
    """The machine that figures were measured on, without its name."""
    import torch

    return {
        "system": f"{platform.system()} {platform.machine()}",
        "cores": os.cpu_count(),
        "python": platform.python_version(),
        "torch": torch.__version__,
        "cuda": torch.version.cuda if torch.cuda.is_available() else None,
        "gpu": torch.cuda.get_device_name() if torch.cuda.is_available() else None,
    }


def markdown(result: Result) -> str:
    """The result as a Markdown page."""
    facts = ", ".join(f"{key} {value}" for key, value in machine().items() if value is not None)
    lines = [f"# fedkd bench {result.name}", "", f"`{result.command}`, seeds {result.seeds}; mean ± sd over seeds", ""]
    lines += [f"Machine: {facts}", ""]
    for table in result.tables:
        lines += [f"## {table.title}", "", "| | " + " | ".join(table.columns) + " |"]
        lines += ["|---" * (len(table.columns) + 1) + "|"]
        lines += [f"| {row} | " + " | ".join(table.cell(row, c) for c in table.columns) + " |" for row in table.rows]
        lines += [""]
    lines += [f"- {shown.line}" for shown in result.shows]
    return "\n".join([*lines, *(f"- {note}" for note in result.notes), ""])


def write(result: Result, out: Path) -> list[Path]:
    """Write NAME.json, NAME.md and NAME.png under `out`, each whole or not at all."""
    from fedkd.cli.benchmarks.charts import plot

    out.mkdir(parents=True, exist_ok=True)
    facts = asdict(result) | {"machine": machine()}
    texts = {f"{result.name}.json": json.dumps(facts, indent=1), f"{result.name}.md": markdown(result)}
    for name, text in texts.items():
        part = out / f"{name}.part"
        part.write_text(text, encoding="utf-8")
        os.replace(part, out / name)
    paths = [out / name for name in texts]
    if any(table.chart for table in result.tables):
        paths.append(out / f"{result.name}.png")
        plot(result, paths[-1])
    return paths
