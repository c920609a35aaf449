"""A benchmark's plot: one panel for every table that asks for one, with whiskers of one standard deviation."""

from __future__ import annotations

import os
import statistics
from pathlib import Path
from textwrap import fill
from typing import Any

from fedkd.cli.benchmarks.result import Result, Table


def plot(result: Result, path: Path) -> None:
    """Write the panels, two side by side, as a PNG."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    tables = [table for table in result.tables if table.chart]
    wide = min(2, len(tables))
    high = -(-len(tables) // wide)
    figure, axes = pyplot.subplots(high, wide, figsize=(8 * wide, 4.5 * high), layout="constrained", squeeze=False)
    places = list(axes.flat)
    for table, place in zip(tables, places, strict=False):
        (bars if table.chart == "bars" else lines)(table, place)
        place.set_title(table.title, fontsize="medium")
        place.legend(fontsize="x-small")
    for place in places[len(tables) :]:
        place.set_axis_off()
    part = path.with_name(path.name + ".part")
    figure.savefig(part, dpi=110, format="png")
    pyplot.close(figure)
    os.replace(part, path)


def _figures(table: Table, row: str, column: str) -> tuple[float, float]:
    """(mean, sd) as shown; 0 where nothing was measured."""
    values = [table.scale(column) * value for value in table.rows[row].get(column, [])]
    return (statistics.mean(values) if values else 0.0), (statistics.stdev(values) if len(values) > 1 else 0.0)


def bars(table: Table, axes: Any) -> None:
    """One group a column, one bar a row."""
    width = 0.8 / len(table.rows)
    columns = [column for column in table.columns if column not in table.plain_columns]
    for i, row in enumerate(table.rows):
        means, sds = zip(*(_figures(table, row, column) for column in columns), strict=True)
        axes.bar([place + i * width for place in range(len(columns))], means, width, yerr=sds, label=row)
    axes.set_xticks([place + 0.4 - width / 2 for place in range(len(columns))], [fill(each, 14) for each in columns])
    axes.set_ylabel("" if table.plain else "percent")


def lines(table: Table, axes: Any) -> None:
    """One line a row over the columns, which are numbers, on a log2 axis."""
    for row, values in table.rows.items():
        measured = [column for column in table.columns if values.get(column)]
        if not measured:
            continue
        means, sds = zip(*(_figures(table, row, column) for column in measured), strict=True)
        style = {"marker": "o", "capsize": 3, "label": row}
        axes.errorbar([float(column) for column in measured], means, yerr=sds, **style)
    axes.set_xscale("log", base=2)
    axes.set_xticks([float(column) for column in table.columns], table.columns)
    axes.set_xlabel(table.across)
    axes.set_ylabel("" if table.plain else "percent")
    if table.plain and axes.dataLim.ymin >= 0:
        axes.set_ylim(bottom=0)
