"""Routes that tell of the edge itself: health, metrics, the served models and their files."""

from __future__ import annotations

from typing import Annotated, Any

from fastapi import APIRouter, Path, Query
from fastapi.responses import FileResponse, JSONResponse, Response

from fedkd.serving.engine import Engine
from fedkd.serving.errors import EdgeFault
from fedkd.serving.messages import ErrorAnswer, ModelCard, ModelFacts, ModelList, Status
from fedkd.serving.metrics import CONTENT_TYPE, EdgeMetrics
from fedkd.serving.models import EdgeModels
from fedkd.serving.served import Served

BINARY = {"content": {"application/octet-stream": {"schema": {"type": "string", "format": "binary"}}}}
Digest = Annotated[str, Path(max_length=64, description="sha256 of the file's content, in hexadecimal")]


class ComponentResponse(FileResponse):
    """A file with ranges, in 1 MiB pieces."""

    chunk_size = 1 << 20


def model_routes(models: EdgeModels, engine: Engine, metrics: EdgeMetrics) -> APIRouter:
    """GET /healthz /readyz /metrics /v1/models[/NAME] /v1/model /v1/components/{digest}."""
    routes = APIRouter(tags=["models"])

    @routes.get("/healthz", summary="Whether the process answers")
    async def healthz() -> Status:
        return Status(status="ok")

    @routes.get(
        "/readyz",
        summary="Whether pictures can be asked for",
        response_model=Status,
        responses={503: {"model": Status, "description": "Not now"}},
    )
    async def readyz() -> Response:
        ready = bool(models.names()) and engine.open
        body = Status(status="ready" if ready else "not ready").model_dump()
        return JSONResponse(body, 200 if ready else 503)

    @routes.get(
        "/metrics",
        summary="Counters and gauges for Prometheus",
        response_class=Response,
        responses={200: {"content": {"text/plain": {"schema": {"type": "string"}}}}},
    )
    async def metrics_text() -> Response:
        metrics.models.clear()
        for served, users in models.users():
            state = "retired" if served.retired else "current"
            metrics.models.labels(served.name, served.version, state).set(users)
        return Response(metrics.text(), headers={"Content-Type": CONTENT_TYPE})

    @routes.get("/v1/models", summary="The served models, as OpenAI's clients list them")
    async def listing() -> ModelList:
        return ModelList(data=[_card(served) for served in models.current()])

    @routes.get("/v1/models/{name}", summary="One served model", responses={404: {"model": ErrorAnswer}})
    async def card(name: Annotated[str, Path(max_length=200)]) -> ModelCard:
        return _card(models.find(name))

    @routes.get(
        "/v1/model",
        summary="What a device needs to know of a model",
        response_model=ModelFacts,
        responses={404: {"model": ErrorAnswer}},
    )
    async def facts(
        model: Annotated[str | None, Query(max_length=200)] = None,
        digest: Annotated[str | None, Query(max_length=64)] = None,
    ) -> dict[str, Any]:
        served = models.find(model, digest)
        return served.describe() | {"load": models.load(served)}

    @routes.get(
        "/v1/components/{digest}",
        summary="A file of a model, by digest, with ranges",
        response_class=Response,
        responses={
            200: BINARY,
            206: {**BINARY, "description": "The range that was asked for"},
            304: {"description": "The asker holds this content"},
            400: {"model": ErrorAnswer},
            404: {"model": ErrorAnswer},
            416: {"model": ErrorAnswer},
        },
    )
    async def component(digest: Digest) -> Response:
        path = models.component(digest)
        if path is None or not path.is_file():
            raise EdgeFault(404, "no component file with this digest", param="digest", code="not_found")
        headers = {"ETag": f'"{digest}"', "Cache-Control": "public, max-age=31536000, immutable"}
        return ComponentResponse(path, media_type="application/octet-stream", headers=headers)

    return routes


def _card(served: Served) -> ModelCard:
    return ModelCard(id=served.name, created=served.created)
