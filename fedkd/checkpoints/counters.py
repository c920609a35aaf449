"""What a cache did for its node: hits, misses and bytes, kept over restarts."""

from __future__ import annotations

import contextlib
import json
from dataclasses import asdict, dataclass
from pathlib import Path

from filelock import FileLock

from fedkd.checkpoints.blobs import write_atomically


@dataclass(frozen=True)
class CacheCounters:
    """Since the cache was made. A hit is a request that needed no transfer; one that waited for another's is a hit.

    `bytes_saved`: bytes of models that were brought in and lay here already, shared with other versions.
    """

    hits: int = 0
    misses: int = 0
    bytes_fetched: int = 0
    bytes_saved: int = 0


def read_counters(root: Path) -> CacheCounters:
    """The counters of the cache at `root`; zeros when there are none that can be read."""
    try:
        facts = json.loads((root / "counters.json").read_text(encoding="utf-8"))
        return CacheCounters(**{name: int(facts[name]) for name in asdict(CacheCounters())})
    except (OSError, ValueError, KeyError, TypeError):
        return CacheCounters()


def add_counts(root: Path, **more: int) -> None:
    """Add to the counters, for all processes; a full disk loses counts and nothing else."""
    with contextlib.suppress(OSError):
        path = root / "locks" / "counters"
        path.parent.mkdir(parents=True, exist_ok=True)
        with FileLock(path, thread_local=False):
            facts = asdict(read_counters(root))
            write_atomically(
                root / "counters.json", json.dumps({name: facts[name] + more.get(name, 0) for name in facts})
            )
