"""Bar and line charts as inline SVG that takes its colours from the page, light or dark."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from html import escape

WIDTH, HEIGHT = 720, 240
HALF_WIDTH = 440  # line charts stand two in a row
LEFT, RIGHT, TOP, BOTTOM = 44, 12, 12, 28
SERIES = 8  # colours that the page defines


def _open(label: str, width: int = WIDTH) -> str:
    return f'<svg viewBox="0 0 {width} {HEIGHT}" role="img" aria-label="{escape(label)}">'


def _text(x: float, y: float, words: str, anchor: str = "middle") -> str:
    return f'<text x="{x:.1f}" y="{y:.1f}" text-anchor="{anchor}">{escape(words)}</text>'


def _gridline(y: float, words: str, width: int = WIDTH) -> str:
    line = f'<line class="grid" x1="{LEFT}" x2="{width - RIGHT}" y1="{y:.1f}" y2="{y:.1f}"/>'
    return line + _text(LEFT - 6, y + 4, words, "end")


def legend(names: Sequence[str], first: int = 0) -> str:
    """The names of the series beside their colours, which begin with colour `first`."""
    keys = "".join(f'<span><i class="s{i % SERIES}"></i>{escape(name)}</span>' for i, name in enumerate(names, first))
    return f'<p class="legend">{keys}</p>'


def bar_chart(
    series: Mapping[str, Mapping[str, float | None]],
    label: str,
    *,
    top: float = 1.0,
    words: Callable[[float], str] = "{:.0%}".format,
) -> str:
    """Grouped bars of values 0..`top`: `series[name][group]`; a value that is missing has no bar.

    `words` says a value with its unit. Returns '' when there is nothing to draw.
    """
    groups = list(dict.fromkeys(group for values in series.values() for group in values))
    if not groups:
        return ""
    inner_w, inner_h = WIDTH - LEFT - RIGHT, HEIGHT - TOP - BOTTOM
    slot = inner_w / len(groups)
    bar = slot * 0.8 / len(series)
    parts = [_open(label)]
    parts += [_gridline(TOP + inner_h * (1 - share), words(top * share)) for share in (0, 0.25, 0.5, 0.75, 1)]
    for column, group in enumerate(groups):
        start = LEFT + column * slot + slot * 0.1
        for row, (name, values) in enumerate(series.items()):
            value = values.get(group)
            if value is None:
                continue
            height = max(min(value / top, 1.0), 0.0) * inner_h
            parts.append(
                f'<rect class="s{row % SERIES}" x="{start + row * bar:.1f}" y="{TOP + inner_h - height:.1f}" '
                f'width="{max(bar - 1, 0.5):.1f}" height="{height:.1f}">'
                f"<title>{escape(f'{name}, {group}: {words(value)}')}</title></rect>"
            )
        parts.append(_text(LEFT + (column + 0.5) * slot, HEIGHT - 10, group))
    return "".join([*parts, "</svg>", legend(list(series))])


def line_chart(
    series: Mapping[str, Sequence[float | None]], label: str, ends: tuple[str, str] = ("start", "end of training")
) -> str:
    """Lines over the share of training done (left to right); missing values leave a gap.

    `ends` are the words at the left and right end. Colours begin with the second, as the first is the base's.
    Returns '' when there is nothing to draw.
    """
    drawn = {name: list(values) for name, values in series.items() if any(v is not None for v in values)}
    if not drawn:
        return ""
    seen = [value for values in drawn.values() for value in values if value is not None]
    low, high = min(0.0, *seen), max(seen)
    span = (high - low) or 1.0
    inner_w, inner_h = HALF_WIDTH - LEFT - RIGHT, HEIGHT - TOP - BOTTOM
    parts = [_open(label, HALF_WIDTH)]
    step = _nice_step(span / 4)
    ticks = [math.ceil(low / step) * step + i * step for i in range(8)]
    heights = {t: TOP + inner_h * (1 - (t - low) / span) for t in ticks if t <= high}
    parts += [_gridline(y, f"{t:.3g}", HALF_WIDTH) for t, y in heights.items()]
    for row, values in enumerate(drawn.values(), 1):
        last = max(len(values) - 1, 1)
        path, pen_down = [], False
        for index, value in enumerate(values):
            if value is None:
                pen_down = False
                continue
            x, y = LEFT + inner_w * index / last, TOP + inner_h * (1 - (value - low) / span)
            path.append(f"{'L' if pen_down else 'M'}{x:.1f} {y:.1f}")
            pen_down = True
        parts.append(f'<path class="s{row % SERIES}" d="{" ".join(path)}"/>')
    parts.append(_text(LEFT, HEIGHT - 8, ends[0], "start"))
    parts.append(_text(HALF_WIDTH - RIGHT, HEIGHT - 8, ends[1], "end"))
    return "".join([*parts, "</svg>", legend(list(drawn), 1)])


def _nice_step(rough: float) -> float:
    """The smallest of 1, 2, 5 times a power of ten that is not below `rough`."""
    power = 10.0 ** math.floor(math.log10(rough))
    return next(m * power for m in (1, 2, 5, 10) if m * power >= rough * (1 - 1e-9))
