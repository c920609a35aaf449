"""Whole pictures in OpenAI's form: all at once, or streamed with partial images."""

from __future__ import annotations

import asyncio
import base64
import time
from collections.abc import AsyncIterator
from dataclasses import dataclass
from secrets import randbits
from typing import Any

import torch
from fastapi import APIRouter, Request
from fastapi.responses import JSONResponse, Response

from fedkd.inference.denoiser import Job
from fedkd.inference.preview import estimate
from fedkd.serving.controls import Steering
from fedkd.serving.engine import FORMATS, Engine, picture_bytes, while_connected
from fedkd.serving.errors import EdgeFault
from fedkd.serving.messages import ImageRequest, Pictures
from fedkd.serving.metrics import EdgeMetrics
from fedkd.serving.models import EdgeModels
from fedkd.serving.served import Served
from fedkd.serving.sharing import Begun, Wish
from fedkd.serving.streaming import EVENT_STREAM, event_bytes, event_stream

Event = tuple[str, dict[str, Any]]
ANSWERS: dict[int | str, dict[str, Any]] = {
    200: {
        "model": Pictures,
        "description": "The pictures; with stream=true events image_generation.partial_image and .completed",
        "content": {EVENT_STREAM: {}},
        "headers": {
            "X-Fedkd-Exact": {"description": "Computed apart from others", "schema": {"type": "boolean"}},
            "X-Fedkd-Shared-Steps": {
                "description": "Steps of others that it began with",
                "schema": {"type": "integer"},
            },
            "X-Fedkd-Model-Digest": {"description": "The model that drew it", "schema": {"type": "string"}},
        },
    }
}


def check_request(asked: ImageRequest, served: Served) -> str:
    """The format to answer in; EdgeFault 400 for what this edge cannot do."""
    height, width = served.resolution
    if asked.response_format not in (None, "b64_json"):
        raise EdgeFault(400, "response_format must be b64_json", param="response_format", code="unsupported")
    if asked.size not in (None, "auto", f"{width}x{height}"):
        raise EdgeFault(400, f"size must be {width}x{height} or auto", param="size", code="invalid_value")
    form = asked.output_format or "png"
    if form not in FORMATS:
        known = ", ".join(FORMATS)
        raise EdgeFault(400, f"output_format must be one of {known}", param="output_format", code="invalid_value")
    if asked.partial_images and not asked.stream:
        raise EdgeFault(400, "partial_images needs stream=true", param="partial_images", code="invalid_value")
    return form


@dataclass(frozen=True)
class Drawn:
    """A picture in base64, the seed it was drawn from, whether apart from all others, and its shared steps."""

    data: str
    seed: int
    alone: bool
    shared: int


@dataclass
class Drawing:
    """The pictures of one request: n jobs at once, in their own steps."""

    asked: ImageRequest
    served: Served
    engine: Engine
    metrics: EdgeMetrics
    owner: str
    form: str
    began: float
    steering: Steering | None = None
    kind: str = "image_generation"  # of its events

    async def jobs(self, seed: int) -> list[Job]:
        """Jobs before their first step, one a picture."""
        asked = self.asked
        return await self.engine.begin(
            self.served,
            asked.prompt,
            seeds=[(seed + place) % (1 << 63) for place in range(asked.n or 1)],
            num_inference_steps=asked.num_inference_steps,
            guidance_scale=asked.guidance_scale,
            scheduler=asked.scheduler,
            scheduler_options=asked.options(),
            owner=self.owner,
            steering=self.steering,
        )

    async def draw(self, job: Job, events: asyncio.Queue[Event | None] | None = None) -> Drawn:
        """One picture; partial images go to `events`, those of shared steps left out."""
        asked = self.asked
        # pictures of one request are to differ, so that each has its own noise
        any_seed = (asked.any_seed or asked.seed is None) and (asked.n or 1) == 1
        alone = asked.exact or self.steering is not None  # steps that a condition steered are nobody else's
        wish = Wish(asked.prompt, job.total, alone, any_seed, self._left_s())
        async with self.engine.joined(self.served, job, wish) as begun:
            return await self._finish(begun, events)

    def _left_s(self) -> float | None:
        return self.asked.deadline_s and self.asked.deadline_s - (time.perf_counter() - self.began)

    async def _finish(self, begun: Begun, events: asyncio.Queue[Event | None] | None) -> Drawn:
        asked, job = self.asked, begun.job
        latents: asyncio.Queue[torch.Tensor] = asyncio.Queue()
        steps = partial_steps(job.total, asked.partial_images or 0) if events is not None else set()
        wanted = {step for step in steps if step > begun.shared}
        loop = asyncio.get_running_loop()

        def on_step(job: Job) -> None:
            if job.step in wanted:
                loop.call_soon_threadsafe(latents.put_nowait, estimate(job).detach().clone())

        async def partials() -> None:
            for place in range(len(wanted)):
                data = await self._encoded(await latents.get())
                assert events is not None
                await events.put(self._event("partial_image", data, partial_image_index=place))

        async with asyncio.TaskGroup() as group:
            group.create_task(partials())
            alone = await self.engine.denoise(
                self.served,
                job,
                job.total,
                owner=self.owner,
                deadline_s=self._left_s(),
                exact=asked.exact,
                on_step=begun.on_step(on_step),
                control=self.steering.kind if self.steering else "",
            )
        data = await self._encoded(job.latents)
        self.metrics.pictures.labels(self.served.name).inc()
        return Drawn(data, job.seed, alone and not begun.shared, begun.shared)

    async def all(self, jobs: list[Job]) -> list[Drawn]:
        """All pictures; when one fails, the others are cancelled."""
        async with asyncio.TaskGroup() as group:
            tasks = [group.create_task(self.draw(job)) for job in jobs]
        return [task.result() for task in tasks]

    async def events(self, jobs: list[Job]) -> AsyncIterator[bytes]:
        """Events of all pictures as they come; a failure is an event too, since the answer has begun."""
        events: asyncio.Queue[Event | None] = asyncio.Queue()

        async def one(job: Job) -> None:
            made = await self.draw(job, events)
            facts = {"seed": made.seed, "fedkd_exact": made.alone, "fedkd_shared_steps": made.shared}
            await events.put(self._event("completed", made.data, usage=usage(), **facts))

        async def everything() -> None:
            try:
                async with asyncio.TaskGroup() as group:
                    for job in jobs:
                        group.create_task(one(job))
            except BaseExceptionGroup as errors:
                await events.put(("error", _first(errors).body()))
            finally:
                events.put_nowait(None)

        task = asyncio.ensure_future(everything())
        try:
            while (event := await events.get()) is not None:
                yield event_bytes(*event)
        finally:
            task.cancel()
            await asyncio.wait({task})

    async def _encoded(self, latents: torch.Tensor) -> str:
        image = await self.engine.picture(self.served, latents, owner=self.owner)
        quality = 100 if self.asked.output_compression is None else self.asked.output_compression
        data = await asyncio.to_thread(picture_bytes, image, self.form, quality)
        return base64.b64encode(data).decode("ascii")

    def _event(self, kind: str, data: str, **facts: Any) -> Event:
        height, width = self.served.resolution
        name = f"{self.kind}.{kind}"
        return name, {
            "type": name,
            "b64_json": data,
            "background": "opaque",
            "created_at": int(time.time()),
            "output_format": self.form,
            "quality": "auto",
            "size": f"{width}x{height}",
            **facts,
        }


def partial_steps(total: int, count: int) -> set[int]:
    """The steps after which partial images are shown: `count` of them, evenly, before the last of `total`."""
    return {min(max(1, round(total * (place + 1) / (count + 1))), total - 1) for place in range(count)} - {0}


def usage() -> dict[str, Any]:
    """OpenAI's count of tokens, which a diffusion model does not have."""
    details = {"image_tokens": 0, "text_tokens": 0}
    return {"input_tokens": 0, "input_tokens_details": details, "output_tokens": 0, "total_tokens": 0}


def image_routes(models: EdgeModels, engine: Engine, metrics: EdgeMetrics) -> APIRouter:
    """POST /v1/images/generations."""
    routes = APIRouter(tags=["images"])

    @routes.post(
        "/v1/images/generations",
        response_model=Pictures,
        responses=ANSWERS,
        summary="Draw pictures at the edge alone, as OpenAI's clients ask",
    )
    async def generate(asked: ImageRequest, request: Request) -> Response:
        with models.use(asked.model) as served:
            form = check_request(asked, served)
            drawing = Drawing(asked, served, engine, metrics, request.scope["holder"], form, time.perf_counter())
            return await answer(drawing, models, request)

    return routes


async def answer(drawing: Drawing, models: EdgeModels, request: Request) -> Response:
    """A drawing's pictures, all at once or as events; its model must be in use meanwhile."""
    asked = drawing.asked
    seed = randbits(31) if asked.seed is None else asked.seed
    if not asked.stream:
        return await while_connected(request.receive, _whole(drawing, seed))
    jobs = await while_connected(request.receive, drawing.jobs(seed))
    events = _kept(models, drawing, jobs)
    await anext(events)  # from here on the events keep the model
    return event_stream(events)


async def _whole(drawing: Drawing, seed: int) -> Response:
    try:
        made = await drawing.all(await drawing.jobs(seed))
    except BaseExceptionGroup as errors:
        raise _first(errors) from errors
    height, width = drawing.served.resolution
    body = {
        "created": int(time.time()),
        "data": [{"b64_json": each.data} for each in made],
        "seed": made[0].seed,
        "output_format": drawing.form,
        "size": f"{width}x{height}",
    }
    headers = {
        "X-Fedkd-Exact": str(all(each.alone for each in made)).lower(),
        "X-Fedkd-Shared-Steps": str(sum(each.shared for each in made)),
        "X-Fedkd-Model-Digest": drawing.served.digest,
    }
    return JSONResponse(body, headers=headers)


async def _kept(models: EdgeModels, drawing: Drawing, jobs: list[Job]) -> AsyncIterator[bytes]:
    """Nothing, then the events of a drawing, its model kept in memory for as long as they come."""
    with models.keep(drawing.served):
        yield b""
        async for event in drawing.events(jobs):
            yield event


def _first(errors: BaseExceptionGroup[BaseException]) -> EdgeFault:
    """What a group of failures is to the client: the first that says something, else a defect of ours."""
    for error in errors.exceptions:
        found = _first(error) if isinstance(error, BaseExceptionGroup) else error
        if isinstance(found, EdgeFault):
            return found
    return EdgeFault(500, f"the edge failed: {type(errors.exceptions[0]).__name__}", code="internal_error")
