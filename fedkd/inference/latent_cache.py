"""Pictures in the making, kept for later prompts that mean nearly the same: bounded, and gone with their model."""

from __future__ import annotations

import threading
from collections.abc import Callable, Hashable
from dataclasses import dataclass
from typing import Any

import numpy as np

from fedkd.inference.denoiser import Job
from fedkd.inference.shared_steps import fork, size_bytes

SAME = 1 - 1e-9  # a cosine above it is the same prompt


@dataclass(frozen=True)
class Way:
    """How a picture is drawn: only pictures drawn one way stand in for each other.

    `model` is a digest. `rest` is all else that must be equal: scheduler, steps, guidance, size, noise.
    """

    model: str
    rest: Hashable


@dataclass(eq=False)
class _Entry:
    way: Way
    embedding: Any  # (d,), of length 1
    job: Job
    size: int
    taken: set[str] | None
    uses: int = 0
    priority: float = 0.0


@dataclass(frozen=True)
class Hit:
    """What the cache had: a job at `step`, which is the finder's own, of a prompt of this similarity.

    `taken` is the set of its run, for what the finder leaves in its turn.
    """

    job: Job
    similarity: float
    taken: set[str] | None = None

    @property
    def step(self) -> int:
        """Steps that need not be run."""
        return self.job.step


class LatentCache:
    """At most `max_bytes` of jobs; safe to use from several threads.

    What goes first has the least steps × (1 + uses) per byte, aged: an eviction lifts whatever comes or is used later
    (GreedyDual-Size with frequency; Cherkasova 1998). ValueError for a bound below 0.
    """

    def __init__(self, max_bytes: int) -> None:
        if max_bytes < 0:
            raise ValueError(f"max_bytes={max_bytes} must be at least 0")
        self.max_bytes = max_bytes
        self._entries: dict[Way, list[_Entry]] = {}
        self._bytes = 0
        self._age = 0.0
        self._counts = {"hits": 0, "misses": 0, "evictions": 0, "steps_saved": 0}
        self._lock = threading.Lock()

    def put(self, way: Way, embedding: Any, job: Job, taken: set[str] | None = None) -> bool:
        """Keep `job`, which nobody may bring on afterwards; whether it is kept. `embedding` (d,) has length 1.

        `taken` are the words (`prompt_embedding.words_of`) that have a picture of this run, for runs of which none may
        get a second: the same noise and words would end as the same picture. `find` adds to it; the steps of one run
        share a set.
        """
        vector = np.asarray(embedding, dtype=np.float64)
        entry = _Entry(way, vector, job, size_bytes(job) + vector.nbytes, taken)
        if entry.size > self.max_bytes:
            return False
        with self._lock:
            for other in self._entries.get(way, []):
                if other.job.step == job.step and other.embedding @ vector >= SAME:
                    if taken is None:
                        return True
                    self._drop(other)  # what it could give has been given more than the new one's
                    break
            self._entries.setdefault(way, []).append(entry)
            self._bytes += entry.size
            self._rank(entry)
            while self._bytes > self.max_bytes:
                self._evict()
            return entry in self._entries.get(way, [])

    def find(
        self,
        way: Way,
        embedding: Any,
        may_share: Callable[[float], int],
        until: int,
        *,
        words: str = "",
        least: int = 1,
    ) -> Hit | None:
        """The farthest job, of steps `least` to `until`, whose similarity `may_share` that many; None without any.

        Of equally far ones the most similar. The job is a copy, without conditions. One of whose run there is a
        picture in these `words` already is passed over.
        """
        vector = np.asarray(embedding, dtype=np.float64)
        with self._lock:
            entries = self._entries.get(way, [])
            best: tuple[int, float, _Entry] | None = None
            entries = [entry for entry in entries if entry.taken is None or words not in entry.taken]
            if entries:
                found = np.clip(np.stack([entry.embedding for entry in entries]) @ vector, -1.0, 1.0)
                for entry, similarity in zip(entries, found.tolist(), strict=True):
                    step = entry.job.step
                    fits = least <= step <= min(until, may_share(similarity))
                    if fits and (not best or (step, similarity) > best[:2]):
                        best = step, similarity, entry
            if best is None:
                self._counts["misses"] += 1
                return None
            step, similarity, entry = best
            entry.uses += 1
            if entry.taken is not None:
                entry.taken.add(words)
            self._rank(entry)
            self._counts["hits"] += 1
            self._counts["steps_saved"] += step
            return Hit(fork(entry.job, None), similarity, entry.taken)

    def forget(self, model: str) -> int:
        """Drop all that a model's digest has left; how many there were."""
        with self._lock:
            gone = [way for way in self._entries if way.model == model]
            dropped = [entry for way in gone for entry in self._entries.pop(way)]
            self._bytes -= sum(entry.size for entry in dropped)
            return len(dropped)

    def stats(self) -> dict[str, float]:
        """Entries and bytes held, and hits, misses, evictions and steps saved so far."""
        with self._lock:
            return {"entries": sum(map(len, self._entries.values())), "bytes": self._bytes, **self._counts}

    def _rank(self, entry: _Entry) -> None:
        entry.priority = self._age + entry.job.step * (1 + entry.uses) / entry.size

    def _evict(self) -> None:
        worst = min((entry for each in self._entries.values() for entry in each), key=lambda entry: entry.priority)
        self._age = worst.priority
        self._drop(worst)
        self._counts["evictions"] += 1

    def _drop(self, entry: _Entry) -> None:
        self._entries[entry.way].remove(entry)
        if not self._entries[entry.way]:
            del self._entries[entry.way]
        self._bytes -= entry.size
