"""Pareto fronts: the points that no other point beats in every respect."""

from __future__ import annotations

from typing import Any

import numpy as np


def nondominated(points: Any, among: Any | None = None) -> Any:
    """Which of `points` (M, D), smaller being better, no other of `among` (M,) dominates: booleans (M,).

    A point dominates another that it nowhere exceeds and somewhere undercuts. Of equal points the first stays.
    """
    points = np.asarray(points, dtype=float)
    inside = np.ones(len(points), dtype=bool) if among is None else np.asarray(among, dtype=bool)
    front = np.zeros(len(points), dtype=bool)
    kept = np.empty((0, points.shape[1]))
    # a point that dominates another comes before it in lexicographic order, so one pass over the kept ones will do
    for index in np.lexsort((np.arange(len(points)), *points.T[::-1])):
        if inside[index] and not (kept <= points[index]).all(axis=1).any():
            front[index] = True
            kept = np.vstack([kept, points[index]])
    return front
