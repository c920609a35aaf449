"""The edge's HTTP service: whole pictures in OpenAI's form, split sessions, and the model's files."""

from __future__ import annotations

import base64
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from secrets import randbits
from typing import Annotated, Any, Literal

import torch
from fastapi import FastAPI, Query, Request
from fastapi.responses import FileResponse, Response
from safetensors.torch import save

from fedkd import __version__
from fedkd.serving.engine import Engine
from fedkd.serving.errors import EdgeFault, Gate, install_handlers
from fedkd.serving.messages import ImageRequest, SessionRequest
from fedkd.serving.sessions import SessionStore

SAFETENSORS = "application/x-safetensors"


class ComponentResponse(FileResponse):
    """A file with ranges, in 1 MiB pieces."""

    chunk_size = 1 << 20


def create_app(
    checkpoint: str,
    *,
    device: str = "cpu",
    dtype: str = "float32",
    name: str = "tiny-sd",
    version: str = "",
    token: str = "",
    scheduler: str = "DDIMScheduler",
    num_inference_steps: int = 12,
    guidance_scale: float = 2.0,
    max_sessions: int = 64,
    session_lifetime_s: float = 600.0,
    max_body_bytes: int = 64 << 20,
    max_waiting: int = 64,
) -> FastAPI:
    """The service for the diffusers folder, shipped name or hub id `checkpoint`.

    `scheduler`, `num_inference_steps` and `guidance_scale` hold where a request names none; `token`
    (if any) must come as a bearer token. ModelError or SchedulerError when it cannot be served.
    """
    engine = Engine(
        checkpoint,
        device=device,
        dtype=dtype,
        name=name,
        version=version,
        scheduler=scheduler,
        num_inference_steps=num_inference_steps,
        guidance_scale=guidance_scale,
        max_waiting=max_waiting,
    )

    @asynccontextmanager
    async def lifespan(_: FastAPI) -> AsyncIterator[None]:
        yield
        engine.close()

    app = FastAPI(title="fedkd edge", version=__version__, lifespan=lifespan, docs_url=None, redoc_url=None)
    install_handlers(app)
    app.add_middleware(Gate, token=token, max_body_bytes=max_body_bytes)
    _add_model_routes(app, engine)
    _add_session_routes(app, engine, SessionStore(max_sessions, session_lifetime_s))
    _add_image_routes(app, engine)
    return app


def _add_model_routes(app: FastAPI, engine: Engine) -> None:
    paths = {file.sha256: engine.folder / file.component / file.name for file in engine.files}
    description = engine.describe()

    @app.get("/healthz")
    async def healthz() -> dict[str, str]:
        return {"status": "ok"}

    @app.get("/v1/model")
    async def model() -> dict[str, Any]:
        return description

    @app.get("/v1/components/{digest}")
    async def component(digest: str) -> Response:
        path = paths.get(digest)
        if path is None or not path.is_file():
            raise EdgeFault(404, "no component file with this digest", param="digest", code="not_found")
        headers = {"ETag": f'"{digest}"', "Cache-Control": "public, max-age=31536000, immutable"}
        return ComponentResponse(path, media_type="application/octet-stream", headers=headers)


def _add_session_routes(app: FastAPI, engine: Engine, sessions: SessionStore) -> None:
    @app.post("/v1/sessions", status_code=201)
    async def open_session(request: SessionRequest) -> Response:
        sessions.check_room()
        session, data, seconds = await engine.run(engine.open, request)
        sessions.add(session)
        headers = {
            "Location": f"/v1/sessions/{session.id}",
            "X-Fedkd-Session": session.id,
            "X-Fedkd-Edge-Seconds": f"{seconds:.6f}",
        }
        return Response(data, 201, headers, SAFETENSORS)

    @app.post("/v1/sessions/{session_id}/handoff")
    async def hand_off(
        session_id: str,
        request: Request,
        result: Annotated[Literal["png", "latents", "both"], Query()] = "png",
    ) -> Response:
        session = sessions.get(session_id)
        data = await request.body()
        latents, picture, seconds = await engine.run(engine.finish, session, data, result != "latents")
        sessions.drop(session_id)
        headers = {"X-Fedkd-Edge-Seconds": f"{seconds:.6f}"}
        if result == "png":
            return Response(picture, 200, headers, "image/png")
        tensors = {"latents": latents.contiguous()}
        if picture:
            tensors["png"] = torch.frombuffer(bytearray(picture), dtype=torch.uint8)
        return Response(save(tensors), 200, headers, SAFETENSORS)

    @app.delete("/v1/sessions/{session_id}", status_code=204)
    async def close_session(session_id: str) -> Response:
        if not sessions.drop(session_id):
            raise EdgeFault(404, "no such session; it ended or expired", param="id", code="session_not_found")
        return Response(status_code=204)


def _add_image_routes(app: FastAPI, engine: Engine) -> None:
    height, width = engine.describe()["resolution"]

    @app.post("/v1/images/generations")
    async def generate(request: ImageRequest) -> dict[str, Any]:
        if request.stream:
            raise EdgeFault(400, "stream is not supported here", param="stream", code="unsupported")
        if request.response_format not in (None, "b64_json"):
            raise EdgeFault(
                400, "response_format must be b64_json", param="response_format", code="unsupported"
            )
        if request.size not in (None, "auto", f"{width}x{height}"):
            raise EdgeFault(400, f"size must be {width}x{height} or auto", param="size", code="invalid_value")
        if request.model not in (None, "", engine.name):
            raise EdgeFault(
                404, f"no model {request.model!r}; this edge serves {engine.name!r}", param="model",
                code="model_not_found",
            )  # fmt: skip
        seed = randbits(31) if request.seed is None else request.seed
        data = []
        for place in range(request.n or 1):
            picture = await engine.run(
                engine.draw,
                request.prompt,
                seed + place,
                request.num_inference_steps,
                request.guidance_scale,
                request.scheduler,
            )
            data.append({"b64_json": base64.b64encode(picture).decode("ascii")})
        return {"created": int(time.time()), "data": data, "seed": seed}
