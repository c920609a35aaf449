"""What the verbs of `fedkd plan` show: aligned tables, JSON, and a front with the chosen point as PNG or SVG."""

from __future__ import annotations

import json
import math
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

FORMATS = (".png", ".svg")


def aligned(headings: Sequence[str], rows: Sequence[Sequence[object]]) -> list[str]:
    """Lines of a table: the first column to the left, the others to the right."""
    cells = [[str(each) for each in row] for row in [headings, *rows]]
    widths = [max(len(row[column]) for row in cells) for column in range(len(headings))]
    return [
        "  ".join(
            text.ljust(width) if column == 0 else text.rjust(width)
            for column, (text, width) in enumerate(zip(row, widths, strict=True))
        ).rstrip()
        for row in cells
    ]


def as_json(facts: Any) -> str:
    """Facts as JSON that any reader takes: None for what is not a finite number."""
    return json.dumps(_finite(facts), indent=2, ensure_ascii=False)


def thinned(indices: Sequence[int], most: int, keep: int) -> list[int]:
    """At most about `most` of `indices`, evenly, with both ends and `keep`."""
    if len(indices) <= most:
        return list(indices)
    step = (len(indices) - 1) / (most - 1)
    chosen = {indices[round(i * step)] for i in range(most)} | {keep}
    return [index for index in indices if index in chosen]


def front_figure(
    path: Path,
    series: Mapping[str, tuple[Sequence[float], Sequence[float]]],
    chosen: tuple[float, float],
    *,
    axes: tuple[str, str],
    title: str = "",
    label: str = "chosen",
    limits: tuple[float | None, float | None] = (None, None),
) -> None:
    """Write {name: (x, y)} as lines of points, with the chosen point marked and limits on x and y dashed.

    PNG or SVG by the suffix of `path`; ValueError for another, or for a folder that is not there.
    """
    if path.suffix.lower() not in FORMATS:
        raise ValueError(f"--plot {path}: '{path.suffix}' is not a plot's; give a name that ends in .png or .svg")
    if not path.parent.is_dir():
        raise ValueError(f"--plot {path}: no folder '{path.parent}'; make it first")
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    figure, place = pyplot.subplots(figsize=(7, 4.5), layout="constrained")
    try:
        for name, (x, y) in series.items():
            place.plot(x, y, marker="o", markersize=3, linewidth=1, label=name)
        place.plot(*chosen, marker="*", markersize=16, linestyle="none", color="black", label=label)
        for limit, line, axis in zip(limits, (place.axvline, place.axhline), axes, strict=True):
            if limit is not None:
                line(limit, linestyle="--", linewidth=1, color="grey", label=f"limit of {axis}: {limit:g}")
        place.set_xlabel(axes[0])
        place.set_ylabel(axes[1])
        place.set_title(title)
        place.legend(fontsize="small")
        part = path.with_name(f"{path.name}.part")
        figure.savefig(part, dpi=110, format=path.suffix[1:].lower())
        os.replace(part, path)
    finally:
        pyplot.close(figure)


def _finite(facts: Any) -> Any:
    if isinstance(facts, dict):
        return {str(key): _finite(value) for key, value in facts.items()}
    if isinstance(facts, list | tuple):
        return [_finite(each) for each in facts]
    if hasattr(facts, "tolist"):  # numpy
        return _finite(facts.tolist())
    return None if isinstance(facts, float) and not math.isfinite(facts) else facts
