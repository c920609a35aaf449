"""How many rows one forward should have: as many as still pay on this device, and as its free memory holds."""

from __future__ import annotations

import time
import weakref
from collections import deque
from collections.abc import Hashable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import psutil
import torch

BUCKETS = (1, 2, 4, 8, 16, 32, 64)
GAIN = 0.03  # a bucket must save this share of the time of a row, or there is no use in waiting for it
SAMPLES = 2  # the first forward of a size pays for warming up
AGAIN = 256  # forwards after which a size that did not pay is tried again: the machine may have been busy
MEMORY_SHARE = 0.5  # of the free memory; the rest is for decoding, uploads and fragmentation
MEMORY_READ_S = 1.0
INSIDE = 2.0  # what a layer needs within itself, relative to the outputs alive between layers
MAX_FORMS = 64


@dataclass
class _Form:
    """What has been seen of forwards of one form; seconds of a row by bucket, the latest five."""

    seconds: dict[int, deque[float]] = field(default_factory=dict)
    row_bytes: float = 0.0
    ceiling: int = BUCKETS[-1]
    forwards: int = 0


class Capacity:
    """The rows a forward of one model may have, by form (see `form_of`), learned from the traffic itself.

    A form begins with one job. Each further size of 1, 2, 4 … 64 rows is tried when enough jobs wait, twice,
    and kept if a row then costs at least 3% less time than before; the first that does not pay ends the
    climb, and is tried again after 256 forwards. Free memory bounds it by the bytes that a row was seen to
    need. With `max_rows` > 0 nothing is learned: that is the number, until memory runs out.
    """

    def __init__(self, device: torch.device, max_rows: int = 0) -> None:
        self.device, self.max_rows = device, max_rows
        self._forms: dict[Hashable, _Form] = {}
        self._free: tuple[float, float] = (float("-inf"), 0.0)

    def rows(self, form: Hashable) -> int:
        """The most rows of a forward of `form`; a job that alone has more is computed alone."""
        seen = self._forms.get(form)
        if seen is None:
            return self.max_rows or BUCKETS[0]
        if self.max_rows:
            return min(self.max_rows, seen.ceiling)
        limit = min(seen.ceiling, self._rows_that_fit(seen))
        return min(limit, _useful(seen))

    @contextmanager
    def measured(self, form: Hashable, denoiser: Any, rows: int) -> Iterator[None]:
        """Learn from the forward of `rows` rows within, which ends with its results on the host."""
        seen = self._seen(form)
        bucket = next((size for size in BUCKETS if rows <= size), BUCKETS[-1])
        watch = _peak_of_cuda if self.device.type == "cuda" else _peak_of_layers
        if self.max_rows or bucket in seen.seconds:  # watching costs time: once a size is enough
            watch = _unwatched
        began = time.perf_counter()
        with watch(denoiser, self.device) as peak:
            yield
        seconds = time.perf_counter() - began
        seen.row_bytes = max(seen.row_bytes, peak() / rows)
        seen.seconds.setdefault(bucket, deque(maxlen=5)).append(seconds / rows)
        seen.forwards += 1
        if seen.forwards % AGAIN == 0:
            useful = _useful(seen)
            seen.seconds = {size: times for size, times in seen.seconds.items() if size <= useful}

    def out_of_memory(self, form: Hashable, rows: int) -> None:
        """A forward of `rows` rows did not fit: never again more than half as many."""
        seen = self._seen(form)
        seen.ceiling = max(1, min(seen.ceiling, rows // 2))
        if self.device.type == "cuda":
            torch.cuda.empty_cache()

    def calibration(self) -> dict[str, dict[int, float]]:
        """Seconds of a row by rows of a forward, for each form seen so far; any thread may ask."""
        return {
            str(form): {size: min(tuple(times)) for size, times in sorted(seen.seconds.copy().items())}
            for form, seen in self._forms.copy().items()
        }

    def _seen(self, form: Hashable) -> _Form:
        if form not in self._forms and len(self._forms) >= MAX_FORMS:
            del self._forms[next(iter(self._forms))]
        return self._forms.setdefault(form, _Form())

    def _rows_that_fit(self, seen: _Form) -> int:
        if not seen.row_bytes:
            return BUCKETS[-1]
        if time.monotonic() - self._free[0] > MEMORY_READ_S:
            self._free = time.monotonic(), free_bytes(self.device)
        return max(1, int(MEMORY_SHARE * self._free[1] / seen.row_bytes))


def _useful(seen: _Form) -> int:
    """The largest bucket that pays, or the one to try next."""
    largest, best, useful = max(seen.seconds, default=0), float("inf"), 0
    for bucket in BUCKETS:
        times = seen.seconds.get(bucket)
        if times is None:
            if bucket > largest:
                return bucket
            continue
        if bucket == largest and len(times) < SAMPLES:
            return bucket
        if min(times) > best * (1 - GAIN):
            return useful
        best, useful = min(times), bucket
    return useful


def free_bytes(device: torch.device) -> float:
    """Memory that can still be had on `device`: what its allocator keeps idle counts as free."""
    if device.type == "cuda":
        idle = torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)
        return float(torch.cuda.mem_get_info(device)[0] + idle)
    return min(float(psutil.virtual_memory().available), _free_in_container())


def _free_in_container(folder: Path = Path("/sys/fs/cgroup")) -> float:
    try:
        limit = float((folder / "memory.max").read_text())  # "max" where there is no limit
        return max(0.0, limit - float((folder / "memory.current").read_text()))
    except (OSError, ValueError):
        return float("inf")


@contextmanager
def _unwatched(denoiser: Any, device: torch.device) -> Iterator[Any]:
    yield lambda: 0.0


@contextmanager
def _peak_of_cuda(denoiser: Any, device: torch.device) -> Iterator[Any]:
    before = torch.cuda.memory_allocated(device)
    torch.cuda.reset_peak_memory_stats(device)
    yield lambda: float(max(0, torch.cuda.max_memory_allocated(device) - before))


@contextmanager
def _peak_of_layers(denoiser: Any, device: torch.device) -> Iterator[Any]:
    """Follows the outputs of the innermost modules for as long as they live; hooks change no number."""
    alive = peak = 0

    def gone(size: int) -> None:
        nonlocal alive
        alive -= size

    def made(_module: Any, _args: Any, output: Any) -> None:
        nonlocal alive, peak
        if isinstance(output, torch.Tensor):
            size = output.numel() * output.element_size()
            alive += size
            peak = max(peak, alive)
            weakref.finalize(output, gone, size).atexit = False

    leaves = [module for module in denoiser.modules() if not any(True for _ in module.children())]
    hooks = [leaf.register_forward_hook(made) for leaf in leaves]
    try:
        yield lambda: INSIDE * peak
    finally:
        for hook in hooks:
            hook.remove()
