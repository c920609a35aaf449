"""The resident memory of a process over time: samples, what a straight line through them says, and a plot."""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import psutil

WARM_UP_SHARE = 0.2
TREND_SAMPLES = 10  # fewer say nothing of a trend


@dataclass(frozen=True)
class Sample:
    """One look at the process, `at_s` after the first."""

    at_s: float
    resident_bytes: int
    threads: int
    files: int
    sessions: float


@dataclass
class MemoryWatch:
    """Samples of a process every `every_s`, as a context manager; `sessions` tells how many are open."""

    pid: int
    sessions: Callable[[], float]
    every_s: float = 0.5
    samples: list[Sample] = field(default_factory=list)
    marks: list[tuple[float, str]] = field(default_factory=list)

    def __enter__(self) -> MemoryWatch:
        self._process, self._began, self._over = psutil.Process(self.pid), time.monotonic(), threading.Event()
        self._thread = threading.Thread(target=self._watch, daemon=True)
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._over.set()
        self._thread.join()

    @property
    def now_s(self) -> float:
        """Seconds since the first sample."""
        return time.monotonic() - self._began

    def mark(self, what: str) -> None:
        """Remember that something begins now, for the plot."""
        self.marks.append((self.now_s, what))

    def _watch(self) -> None:
        while True:
            try:
                with self._process.oneshot():
                    resident, threads = self._process.memory_info().rss, self._process.num_threads()
                    files = self._process.num_fds() if hasattr(self._process, "num_fds") else 0
                self.samples.append(Sample(self.now_s, resident, threads, files, self.sessions()))
            except psutil.Error:
                return
            except Exception:  # the edge is too busy to tell: the next sample will do
                pass
            if self._over.wait(self.every_s):
                return


def growth(samples: list[Sample], begin_s: float, end_s: float) -> float:
    """By which share a straight line through the samples (least squares) rises from begin to end; NaN for too few."""
    inside = [each for each in samples if begin_s <= each.at_s <= end_s]
    if len(inside) < TREND_SAMPLES:
        return float("nan")
    at, resident = np.array([(each.at_s, each.resident_bytes) for each in inside]).T
    slope, height = np.polyfit(at, resident, 1)
    first = height + slope * at[0]
    return float(slope * (at[-1] - at[0]) / first)


def draw(watch: MemoryWatch, path: Path, lines: list[tuple[float, float, str]]) -> None:
    """Write a PNG: memory and open sessions over time; `lines` are (begin, end, name) of what was fitted."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    figure, (top, bottom) = pyplot.subplots(
        2, 1, figsize=(10, 6), sharex=True, layout="constrained", height_ratios=[3, 1]
    )
    at = np.array([each.at_s / 60 for each in watch.samples])
    resident = np.array([each.resident_bytes / 1e6 for each in watch.samples])
    top.plot(at, resident, linewidth=1, label="resident memory")
    for begin_s, end_s, name in lines:
        inside = (at * 60 >= begin_s) & (at * 60 <= end_s)
        if inside.sum() >= TREND_SAMPLES:
            slope, height = np.polyfit(at[inside], resident[inside], 1)
            top.plot(at[inside], height + slope * at[inside], linestyle="--", label=f"fit, {name}")
    for at_s, what in watch.marks:
        top.axvline(at_s / 60, color="lightgray", linewidth=0.8, zorder=0)
        if not what.startswith("v"):
            top.annotate(what, (at_s / 60, 0.02), xycoords=("data", "axes fraction"), rotation=90, fontsize="x-small")
    top.set_ylim(0, 1.1 * float(resident.max()))
    top.set_ylabel("MB")
    top.legend(fontsize="x-small", loc="lower right")
    bottom.plot(at, [each.sessions for each in watch.samples], linewidth=1)
    bottom.set_ylabel("open sessions")
    bottom.set_xlabel("minutes (grey lines: new versions)")
    path.parent.mkdir(parents=True, exist_ok=True)
    part = path.with_name(path.name + ".part")
    figure.savefig(part, dpi=110, format="png")
    pyplot.close(figure)
    os.replace(part, path)
