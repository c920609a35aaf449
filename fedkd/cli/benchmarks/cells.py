"""Cells: pieces of a benchmark that are each measured once, kept as JSON, and carried out side by side."""

from __future__ import annotations

import json
import math
import os
import signal
from collections.abc import Callable, Iterable
from concurrent.futures import ProcessPoolExecutor, as_completed
from dataclasses import dataclass
from multiprocessing import get_context, parent_process
from pathlib import Path
from threading import Thread
from typing import Any

Facts = dict[str, Any]


@dataclass(frozen=True)
class Cell:
    """One measurement. `recipe` is all that it depends on; with another recipe it is measured again."""

    name: str
    recipe: Any
    measure: Callable[[Cell], Facts]
    folder: Path  # the seed's, where materials lie and cells are kept

    @property
    def path(self) -> Path:
        """Where the figures are kept."""
        return self.folder / "cells" / f"{self.name}.json"

    @property
    def identity(self) -> str:
        """What the figures depend on, in short."""
        from fedkd.recipe import recipe_digest

        return recipe_digest(self.recipe)[:16]

    def kept(self) -> Facts | None:
        """The figures of an earlier run, if they are of this very recipe."""
        try:
            facts = json.loads(self.path.read_text("utf-8"))
        except (OSError, ValueError):
            return None
        return facts if facts.get("identity") == self.identity else None

    def carry_out(self) -> Facts:
        """Measure and keep, unless that was done before; {"failed": why} for a training that goes out of bounds."""
        found = self.kept()
        if found is not None:
            return found
        try:
            facts = self.measure(self) | {"identity": self.identity}
        except ValueError as error:
            return {"failed": " ".join(str(error).split())}
        self.path.parent.mkdir(parents=True, exist_ok=True)
        part = self.path.with_name(f"{self.path.name}.{os.getpid()}.part")
        part.write_text(json.dumps(facts, indent=1), encoding="utf-8")
        os.replace(part, self.path)
        return facts


def ready(threads: int) -> None:
    """A worker's start: its own torch threads, and an end without a word at Ctrl-C or when its parent is gone."""
    import torch

    Thread(target=_end_with_parent, daemon=True).start()

    torch.set_num_threads(threads)
    signal.signal(signal.SIGINT, signal.SIG_DFL)


def _end_with_parent() -> None:
    parent = parent_process()
    if parent:
        parent.join()
        os._exit(1)


def carry_out_all(
    keys: list[Any], work: Callable[[Any], Facts], *, jobs: int, threads: int, say: Callable[[Any, Facts], None]
) -> dict[Any, Facts]:
    """`work(key)` for every key, in `jobs` processes; `say(key, facts)` as each is done."""
    done: dict[Any, Facts] = {}
    if jobs <= 1:
        import torch

        torch.set_num_threads(threads)
        for key in keys:
            done[key] = work(key)
            say(key, done[key])
        return done
    context = get_context("spawn")
    with ProcessPoolExecutor(jobs, mp_context=context, initializer=ready, initargs=(threads,)) as pool:
        futures = {pool.submit(work, key): key for key in keys}
        try:
            for future in as_completed(futures):
                key = futures[future]
                done[key] = future.result()
                say(key, done[key])
        except BaseException:
            pool.shutdown(wait=False, cancel_futures=True)
            raise
    return done


def number(facts: Facts | None, *path: str) -> float:
    """The figure at `path` in a cell's facts; not a number where the cell failed."""
    value: Any = facts
    for key in path:
        value = value.get(key) if isinstance(value, dict) else None
    return float(value) if value is not None else math.nan


def mean(values: Iterable[float]) -> float:
    """The mean; not a number of none."""
    known = list(values)
    return sum(known) / len(known) if known else math.nan
