"""An edge's own load: what a picture costs here, how fast it is drawn, and how much is in hand."""

from __future__ import annotations

import logging
import math
import secrets
import time
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager

from fedkd.inference.schedulers import SchedulerError
from fedkd.serving.arrivals import Arrivals
from fedkd.serving.engine import Engine
from fedkd.serving.errors import EdgeFault
from fedkd.serving.models import EdgeModels
from fedkd.serving.on_demand import OnDemand
from fedkd.serving.peers import EdgeReport, ModelReport
from fedkd.serving.served import Served
from fedkd.serving.split_table import ModelCosts

log = logging.getLogger("fedkd.serving")
TRIAL_STEPS = 3


class Rate:
    """An amount a second, over the last `window_s` or so: what came decays by e in that time."""

    def __init__(self, window_s: float = 30.0, clock: Callable[[], float] = time.monotonic) -> None:
        self.window_s, self.clock = window_s, clock
        self._began = self._at = clock()
        self._amount = 0.0

    def add(self, amount: float) -> None:
        """So much came now."""
        self._decay()
        self._amount += amount

    @property
    def per_s(self) -> float:
        """The rate now; what was not yet seen in a young window is taken for like the rest."""
        self._decay()
        seen_s = self.window_s * -math.expm1(-(self._at - self._began) / self.window_s)
        return self._amount / max(seen_s, 1.0)

    def _decay(self) -> None:
        now = self.clock()
        self._amount *= math.exp(-(now - self._at) / self.window_s)
        self._at = now


class Workload:
    """What this edge has in hand, and what it says of itself; used on the event loop alone."""

    def __init__(self, models: EdgeModels, engine: Engine, on_demand: OnDemand) -> None:
        self.models, self.engine, self.on_demand = models, engine, on_demand
        self.edge = secrets.token_hex(8)
        self.requests = 0
        self._arrivals = Arrivals()
        self._costs = ModelCosts()
        self._row_flop: dict[str, float] = {}  # by digest
        self._rate = Rate()
        self._sequence = 0

    def arrived(self, flop: float) -> None:
        """A client has brought this edge so much work, wherever it will be drawn."""
        self._rate.add(flop)

    @asynccontextmanager
    async def drawing(self, flop: float, model: str = "") -> AsyncIterator[None]:
        """Count a request of so much work as drawn here, its model fetched if need be."""
        self.requests += 1
        try:
            with self._arrivals.expected(flop):
                async with self.on_demand.holding(model):
                    await self.count()  # others are to know of it as soon as it is here
                    yield
        finally:
            self.requests -= 1

    async def count(self) -> None:
        """Count the FLOPs of models that are new here; a model that cannot be counted goes by its parameters."""
        for served in self.models.current():
            if served.digest in self._row_flop:
                continue
            try:
                flop = float((await self._costs.of(served)).unet_flop)
            except EdgeFault:
                _, height, width = served.latent_shape
                flop = 2.0 * height * width * sum(file.size_bytes for file in served.files)
            self._row_flop[served.digest] = max(1.0, flop)

    async def measure(self) -> None:
        """Draw a few steps, so that the first requests are not sent by a guess of this edge's speed."""
        for served in self.models.current()[:1]:
            try:
                (job,) = await self.engine.begin(
                    served, "", seeds=[0], num_inference_steps=TRIAL_STEPS, guidance_scale=None, scheduler=None,
                    scheduler_options={}, owner="",
                )  # fmt: skip
                await self.engine.denoise(served, job, job.total, owner="", admitted=False)
            except (EdgeFault, SchedulerError) as error:
                log.warning("the speed of %s is not known before it draws: %s", served.name, error)

    def report(self) -> EdgeReport:
        """What the other edges are told."""
        self._sequence += 1
        models = {served.name: self._facts(served) for served in self._counted()}
        return EdgeReport(
            edge=self.edge,
            sequence=self._sequence,
            ready=(bool(models) or bool(self.on_demand.sources)) and self.engine.open,
            call_s=float(self.models.steps.stats()["call_s"]),
            left_s=self._left_s(models),
            requests=self.requests,
            arriving_flops_per_s=self._rate.per_s,
            models=models,
            fetchable=self.on_demand.fetchable(),
        )

    def _left_s(self, models: dict[str, ModelReport]) -> list[float]:
        """Seconds of denoising of each job in hand, and of those about to be submitted."""
        row_s = {served.key: models[served.name].row_s for served in self._counted()}
        usual_s = float(self.models.steps.stats()["row_s"])
        left_s = [rows * (row_s.get(key) or usual_s) for key, rows in self.models.steps.backlog()]
        measured = [model for model in models.values() if model.row_s]
        flop_s = sum((model.row_s or 0.0) / model.row_flop for model in measured) / len(measured) if measured else 0.0
        return left_s + [flop * flop_s for flop in self._arrivals.flops]

    def _counted(self) -> list[Served]:
        return [served for served in self.models.current() if served.digest in self._row_flop]

    def _facts(self, served: Served) -> ModelReport:
        forms = self.models.calibration(served).values()
        return ModelReport(
            digest=served.digest,
            created=served.created,
            row_flop=self._row_flop[served.digest],
            row_s=min((min(seconds.values()) for seconds in forms if seconds), default=None),
            num_inference_steps=served.defaults.num_inference_steps,
            guidance_scale=served.defaults.guidance_scale,
        )
