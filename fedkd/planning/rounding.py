"""Limits as text for those who must change them: rounded to the side on which they can be met."""

from __future__ import annotations

import math


def above(value: float, digits: int = 4) -> str:
    """`value` rounded up to so many significant digits: an upper limit of this text can be met."""
    return _rounded(value, digits, up=True)


def below(value: float, digits: int = 4) -> str:
    """`value` rounded down to so many significant digits: a lower limit of this text can be met."""
    return _rounded(value, digits, up=False)


def _rounded(value: float, digits: int, *, up: bool) -> str:
    if value <= 0:
        return f"{value:g}"
    unit = 10.0 ** (math.floor(math.log10(value)) - digits + 1)
    whole = math.ceil(value / unit) if up else math.floor(value / unit)
    return f"{whole * unit:.{digits + 2}g}"
