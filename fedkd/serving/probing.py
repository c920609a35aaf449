"""What an edge's denoisers make of prompts, asked for once and kept for the next request in the same words."""

from __future__ import annotations

import asyncio
from collections import OrderedDict
from collections.abc import Awaitable, Callable, Coroutine, Hashable
from typing import Any

from fedkd.inference.denoiser import Job
from fedkd.inference.prompt_probe import answer, probe
from fedkd.inference.shared_steps import drawn_by
from fedkd.serving.metrics import EdgeMetrics
from fedkd.serving.served import Served

Step = Callable[[Job], Awaitable[object]]
MOST = 4096  # vectors, of 8 kB each at most


class Answers:
    """At most MOST vectors of probes; used on the event loop alone."""

    def __init__(self, metrics: EdgeMetrics) -> None:
        self.metrics = metrics
        self._kept: OrderedDict[Hashable, asyncio.Task[Any]] = OrderedDict()

    async def of(self, served: Served, job: Job, words: str, step: Step) -> Any:
        """The vector (d,) of `job`'s prompt, None for one without direction; `step` takes a job one step on.

        A probe is a step more, among those of others; the empty prompt's is another, once for each way to draw.
        """
        way = (served.digest, drawn_by(job))

        async def asked() -> Any:
            blank = [self._once(way, stepped(blank=True))] if job.rows == 2 else []
            return await asyncio.to_thread(answer, *await asyncio.gather(stepped(blank=False), *blank))

        async def stepped(*, blank: bool) -> Job:
            made = probe(job, blank=blank)
            await step(made)
            self.metrics.probes.labels(served.name).inc()
            made.conditions = None
            return made

        return await self._once((way, words), asked())

    async def _once(self, key: Hashable, work: Coroutine[Any, Any, Any]) -> Any:
        """What `work` ends with; who asks for the same meanwhile or later gets that, unless it failed."""
        task = self._kept.get(key)
        if task is None:
            task = self._kept[key] = asyncio.create_task(work)
            while len(self._kept) > MOST:
                self._kept.popitem(last=False)
        else:
            work.close()
            self._kept.move_to_end(key)
        try:
            return await asyncio.shield(task)  # it goes on for others when this one is cancelled
        finally:
            if task.done() and (task.cancelled() or task.exception()) and self._kept.get(key) is task:
                del self._kept[key]
