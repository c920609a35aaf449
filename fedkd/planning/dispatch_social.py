"""The scheduler that minimises everybody's delay: by size, queue and a ceiling, chosen by the load it measures."""

from __future__ import annotations

import numpy as np

from fedkd.planning.dispatch_light import light
from fedkd.planning.dispatch_overload import overloaded
from fedkd.planning.dispatch_situation import Situation

Array = np.ndarray

CEILING_S = 17.5  # of the percentile objective
FULL, FULL_SEEN = 1.3, 1.6  # work to be done over what can be done by the next report: above it, overloaded
LASTING = 0.85  # measured load below which a backlog is a burst that passes


def social(now: Situation) -> Array:
    """The least mean delay while no edge's backlog passes 17.5 s (or 1.08 x the mean, where that is more).

    No knowledge of the horizon. Where 1.3 times what the edges can do by the next report waits and comes, and the
    measured load says that it is no passing burst, it keeps most of them near empty for small tasks (`overloaded`);
    otherwise each task pays for those behind (`light`).
    """
    return _by_load(now, CEILING_S, 0.0)


def social_mean(now: Situation) -> Array:
    """The least mean delay, whatever it does to the slowest: the ceiling starts high, and falls as all edges fill."""
    return _by_load(now, 85.0, 4.3)


def _by_load(now: Situation, start_s: float, fall: float) -> Array:
    capacity = np.maximum(now.speeds * now.span_s, 1e-12)
    waiting = np.where(now.speed > 0, now.queue, 0.0).sum(axis=1)
    limit = np.where(now.unseen * now.count >= 1, FULL, FULL_SEEN)
    full = ((waiting + now.usual) / capacity > limit) & (now.load > LASTING)
    if not full.any():
        return light(now)
    found = overloaded(now, lambda mean_s: start_s - fall * mean_s)
    return found if full.all() else np.where(full[:, None], found, light(now))
