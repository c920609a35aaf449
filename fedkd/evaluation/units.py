"""Figures as readers of a page expect them: percent, bytes, seconds, joules; a dash where there is none."""

from __future__ import annotations

import math
from typing import Any


def percent(share: Any) -> str:
    """0.873 as '87%'; a dash when there is no figure."""
    return "–" if not is_number(share) else f"{100 * share:.0f}%"


def size(size_bytes: Any) -> str:
    """Bytes with a decimal unit."""
    if not is_number(size_bytes):
        return "–"
    for unit in ("B", "kB", "MB", "GB", "TB"):
        if abs(size_bytes) < 999.5 or unit == "TB":
            return f"{size_bytes:.0f} {unit}" if unit == "B" else f"{three_digits(size_bytes)} {unit}"
        size_bytes /= 1000
    return ""


def duration(seconds: Any) -> str:
    """Seconds with the unit a reader expects."""
    if not is_number(seconds):
        return "–"
    if seconds < 1:
        return f"{three_digits(1000 * seconds)} ms"
    if seconds < 100:
        return f"{seconds:.3g} s"
    minutes, rest = divmod(round(seconds), 60)
    return f"{minutes} min {rest} s" if minutes < 60 else f"{minutes // 60} h {minutes % 60} min"


def energy(joules: Any) -> str:
    """Joules with an SI prefix."""
    if not is_number(joules):
        return "–"
    for limit, factor, unit in ((1e-3, 1e6, "µJ"), (1.0, 1e3, "mJ"), (1e3, 1.0, "J")):
        if abs(joules) < limit:
            return f"{three_digits(joules * factor)} {unit}"
    return f"{three_digits(joules / 1e3)} kJ"


def number(value: Any) -> str:
    """Counts as they are, measures with three digits."""
    if not is_number(value):
        return "–" if value is None else str(value)
    return f"{value:,}" if isinstance(value, int) else three_digits(value)


def three_digits(value: float) -> str:
    """Three significant digits, and never an exponent for what is 1000 or more."""
    return f"{value:.3g}" if abs(value) < 999.5 else f"{value:.0f}"


def is_number(value: Any) -> bool:
    """Whether it is a finite int or float."""
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)


def small_percent(share: float) -> str:
    """A share as a percentage, small ones with a digit more."""
    return percent(share) if share >= 0.1 or share == 0 else f"{100 * share:.2g}%"
