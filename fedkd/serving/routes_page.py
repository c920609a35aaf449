"""The page at `/` and what it asks for: the planner's table of splits, and the checkpoints with their lineage."""

from __future__ import annotations

import asyncio
import hashlib
from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Any, Literal

from fastapi import APIRouter, Query, Request
from fastapi.responses import Response

from fedkd.planning.system import EUCI_DEVICE, EUCI_EDGE, EUCI_LINK, Device, Link
from fedkd.serving.checkpoint_list import CheckpointList, checkpoint_list
from fedkd.serving.messages import ErrorAnswer, Guidance, Name, Steps
from fedkd.serving.models import EdgeModels
from fedkd.serving.split_table import ModelCosts, SplitTable, split_table

PAGE = Path(__file__).parent / "page"
TYPES = {
    ".html": "text/html; charset=utf-8",
    ".css": "text/css; charset=utf-8",
    ".js": "text/javascript; charset=utf-8",
    ".svg": "image/svg+xml",
}
# Nothing but the page's own files may run or be shown, nobody may frame it, and it may talk to this edge alone.
POLICY = "; ".join(
    (
        "default-src 'none'",
        "script-src 'self'",
        "style-src 'self'",
        "img-src 'self' data: blob:",
        "connect-src 'self'",
        "base-uri 'none'",
        "form-action 'none'",
        "frame-ancestors 'none'",
        "require-trusted-types-for 'script'",
    )
)
HEADERS = {
    "Cache-Control": "no-cache",  # asked again each time, answered by 304: a new edge never meets an old page
    "Content-Security-Policy": POLICY,
    "Cross-Origin-Opener-Policy": "same-origin",
    "Referrer-Policy": "no-referrer",
    "X-Content-Type-Options": "nosniff",
}
FILES = {"/" + file.name.removesuffix("index.html"): file for file in sorted(PAGE.glob("*")) if file.suffix in TYPES}
PAGE_PATHS = tuple(FILES)
"""Where the page's files are served: they hold no secret, and need no token."""

Speed = Annotated[float, Query(ge=1e3, le=1e21, allow_inf_nan=False)]
Watts = Annotated[float, Query(ge=1e-3, le=1e9, allow_inf_nan=False)]
ERRORS: dict[int | str, dict[str, Any]] = {
    404: {"model": ErrorAnswer},
    422: {"model": ErrorAnswer},
    501: {"model": ErrorAnswer, "description": "The planner cannot count the work of this model"},
}


def page_routes(models: EdgeModels) -> APIRouter:
    """GET / and the page's files, GET /v1/plan, GET /v1/checkpoints."""
    routes = APIRouter(tags=["page"])
    costs = ModelCosts()
    for place, file in FILES.items():
        routes.add_api_route(place, _served(file), methods=["GET", "HEAD"], include_in_schema=False)

    @routes.get("/v1/plan", summary="What every split of a picture would cost, and what to choose", responses=ERRORS)
    async def plan(
        model: Annotated[Name | None, Query()] = None,
        steps: Annotated[Steps | None, Query()] = None,
        guidance_scale: Annotated[Guidance | None, Query()] = None,
        scheduler: Annotated[Name | None, Query()] = None,
        decode: Literal["edge", "device"] = "edge",
        cold_device: Annotated[bool, Query(description="the device has to fetch the denoiser first")] = False,
        delay_limit_s: Annotated[float | None, Query(gt=0, le=1e9, allow_inf_nan=False)] = None,
        device_flops_per_s: Speed = EUCI_DEVICE.flops_per_s,
        device_watts: Watts = EUCI_DEVICE.watts,
        edge_flops_per_s: Speed = EUCI_EDGE.flops_per_s,
        edge_watts: Watts = EUCI_EDGE.watts,
        bandwidth_bps: Annotated[float, Query(ge=1e3, le=1e15, allow_inf_nan=False)] = EUCI_LINK.bandwidth_bps,
        distance_m: Annotated[float, Query(ge=0, le=1e9, allow_inf_nan=False)] = EUCI_LINK.distance_m,
    ) -> SplitTable:
        with models.use(model) as served:
            work = await costs.of(served)
            return await asyncio.to_thread(
                split_table,
                served,
                work,
                Device("device", device_flops_per_s, device_watts),
                Device("edge", edge_flops_per_s, edge_watts),
                Link(bandwidth_bps, distance_m),
                num_inference_steps=steps,
                guidance_scale=guidance_scale,
                scheduler=scheduler,
                decode=decode,
                cold_device=cold_device,
                delay_limit_s=delay_limit_s,
                measured_flops_per_s=measured(models, served.key, work.unet_flop),
            )

    @routes.get("/v1/checkpoints", summary="The checkpoints that are served or held here, with their lineage")
    async def checkpoints() -> CheckpointList:
        return await asyncio.to_thread(checkpoint_list, models)

    return routes


def measured(models: EdgeModels, key: str, unet_flop: float) -> float | None:
    """This edge's speed in FLOP/s as its traffic has shown it, in forwards of the fewest rows; None before that."""
    speeds = [
        unet_flop / seconds[min(seconds)] for seconds in models.steps.calibration(key).values() if any(seconds.values())
    ]
    return max(speeds, default=None)


def _served(file: Path) -> Callable[[Request], Response]:
    content = file.read_bytes()
    etag = f'"{hashlib.sha256(content).hexdigest()[:32]}"'
    headers = {**HEADERS, "ETag": etag}

    async def page_file(request: Request) -> Response:
        held = [each.strip().removeprefix("W/") for each in request.headers.get("if-none-match", "").split(",")]
        if etag in held or "*" in held:
            return Response(status_code=304, headers=headers)
        return Response(content, headers=headers, media_type=TYPES[file.suffix])

    return page_file  # type: ignore[return-value]
