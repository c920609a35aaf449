"""Models that an edge fetches when they are first asked for, and lets go of when others are wanted more."""

from __future__ import annotations

import asyncio
import time
from collections import Counter
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager

from fedkd.serving.errors import EdgeFault
from fedkd.serving.models import EdgeModels
from fedkd.serving.sources import Source

GUESS_S = 2.0  # what fetching takes, where none was fetched yet: too short a guess is soon put right, a long one never


class OnDemand:
    """`sources` of models by name, `most` of which are held at once besides those always served.

    Used on the event loop alone.
    """

    def __init__(self, models: EdgeModels, sources: Mapping[str, Source], most: int) -> None:
        self.models, self.sources, self.most = models, dict(sources), max(1, most)
        self._took_s: dict[str, float] = {}
        self._fetching: dict[str, float] = {}  # since when
        self._used: Counter[str] = Counter()
        self._held: dict[str, None] = {}  # least lately used first
        self._lock = asyncio.Lock()

    def fetchable(self) -> dict[str, float]:
        """Seconds until each model that is not served could be."""
        known = list(self._took_s.values())
        guess_s = sum(known) / len(known) if known else GUESS_S
        served, now = set(self.models.names()), time.monotonic()
        return {
            name: max(0.001, self._took_s.get(name, guess_s) - (now - self._fetching.get(name, now)))
            for name in self.sources
            if name not in served
        }

    @asynccontextmanager
    async def holding(self, name: str) -> AsyncIterator[None]:
        """Have the model, fetched if need be, for as long as a block runs; EdgeFault 503 when it cannot be had."""
        if name not in self.sources:
            yield
            return
        self._used[name] += 1
        try:
            if name not in self.models.names():
                await self._fetch(name)
            self._held.pop(name, None)
            self._held[name] = None
            yield
        finally:
            self._used[name] -= 1

    async def _fetch(self, name: str) -> None:
        async with self._lock:
            if name in self.models.names():
                return
            for other in [each for each in self._held if not self._used[each]]:
                if len(self._held) < self.most:
                    break
                del self._held[other]
                self.models.remove(other)
            began = self._fetching[name] = time.monotonic()
            try:
                await asyncio.to_thread(self.models.add, name, self.sources[name])
            except (ValueError, OSError) as error:
                raise EdgeFault(503, f"{name!r} cannot be fetched: {error}", code="not_fetched") from error
            finally:
                del self._fetching[name]
            self._took_s[name] = time.monotonic() - began
