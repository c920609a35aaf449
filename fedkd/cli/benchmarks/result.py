"""What every benchmark leaves: a table, a JSON with its bounds, and a plot."""

from __future__ import annotations

import json
import os
import platform
import statistics
from dataclasses import asdict, dataclass, field
from pathlib import Path


@dataclass(frozen=True)
class Shown:
    """One promise: `value` against `bound` (at least), and whether it holds."""

    what: str
    value: float
    bound: float
    holds: bool


@dataclass
class Result:
    """A benchmark's figures. `rows`: one a method, {column: value per seed}; `shows`: its promises."""

    name: str
    command: str
    seeds: list[int]
    columns: list[str]
    rows: dict[str, dict[str, list[float]]]
    shows: list[Shown] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)

    def cell(self, row: str, column: str) -> str:
        """Mean ± standard deviation over seeds, in percent."""
        values = self.rows[row].get(column, [])
        if not values:
            return "-"
        sd = f" ± {100 * statistics.stdev(values):.1f}" if len(values) > 1 else ""
        return f"{100 * statistics.mean(values):.1f}{sd}"


def machine() -> dict[str, object]:
    """The machine that figures were measured on, without its name."""
    import torch

    return {
        "system": f"{platform.system()} {platform.machine()}",
        "cores": os.cpu_count(),
        "python": platform.python_version(),
        "torch": torch.__version__,
        "cuda": torch.version.cuda if torch.cuda.is_available() else None,
    }


def markdown(result: Result) -> str:
    """The result as a Markdown page."""
    lines = [f"# fedkd bench {result.name}", "", f"`{result.command}`, seeds {result.seeds}; percent, mean ± sd", ""]
    lines += ["| | " + " | ".join(result.columns) + " |", "|---" * (len(result.columns) + 1) + "|"]
    lines += [f"| {row} | " + " | ".join(result.cell(row, c) for c in result.columns) + " |" for row in result.rows]
    lines += [
        "",
        *(f"- {'holds' if s.holds else 'FAILS'}: {s.what}: {s.value:.1f} (bound {s.bound:g})" for s in result.shows),
    ]
    return "\n".join([*lines, *(f"- {note}" for note in result.notes), ""])


def write(result: Result, out: Path) -> list[Path]:
    """Write NAME.json, NAME.md and NAME.png under `out`, each whole or not at all."""
    out.mkdir(parents=True, exist_ok=True)
    facts = asdict(result) | {"machine": machine()}
    texts = {f"{result.name}.json": json.dumps(facts, indent=1), f"{result.name}.md": markdown(result)}
    for name, text in texts.items():
        part = out / f"{name}.part"
        part.write_text(text, encoding="utf-8")
        os.replace(part, out / name)
    plot(result, out / f"{result.name}.png")
    return [*(out / name for name in texts), out / f"{result.name}.png"]


def plot(result: Result, path: Path) -> None:
    """Grouped bars: one group a column, one bar a row, whiskers of one standard deviation."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    figure, axes = pyplot.subplots(figsize=(8, 4), layout="constrained")
    width = 0.8 / len(result.rows)
    for i, (row, values) in enumerate(result.rows.items()):
        means = [100 * statistics.mean(values[c]) if values.get(c) else 0.0 for c in result.columns]
        sds = [100 * statistics.stdev(values[c]) if len(values.get(c, [])) > 1 else 0.0 for c in result.columns]
        places = [column + i * width for column in range(len(result.columns))]
        axes.bar(places, means, width, yerr=sds, label=row)
    axes.set_xticks([c + 0.4 - width / 2 for c in range(len(result.columns))], result.columns)
    axes.set_ylabel("prompt accuracy (%)")
    axes.legend(fontsize="small")
    figure.savefig(path, dpi=120, format="png")
    pyplot.close(figure)
