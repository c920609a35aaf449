"""Routes of split sessions: open, follow, hand off, resume from another edge, and close."""

from __future__ import annotations

import asyncio
import re
import time
from typing import Annotated, Any, Literal

from fastapi import APIRouter, Path, Query, Request
from fastapi.responses import Response

from fedkd.inference.wire import Form
from fedkd.serving.engine import Engine, while_connected
from fedkd.serving.errors import EdgeFault
from fedkd.serving.messages import ID_PATTERN, Deadline, DeviceSteps, Order, SessionId, SessionRequest
from fedkd.serving.metrics import EdgeMetrics
from fedkd.serving.models import EdgeModels
from fedkd.serving.session_work import SAFETENSORS, SessionWork, digest_of
from fedkd.serving.sessions import Session, SessionStore
from fedkd.serving.streaming import EVENT_STREAM, Channel, event_stream

BYTES: dict[str, Any] = {"schema": {"type": "string", "format": "binary"}}
HANDED: dict[int | str, dict[str, Any]] = {201: {"description": "A hand-off", "content": {SAFETENSORS: BYTES}}}
PICTURE: dict[int | str, dict[str, Any]] = {
    200: {"description": "The picture, its final latents, or both", "content": {"image/png": BYTES, SAFETENSORS: BYTES}}
}
EVENTS: dict[int | str, dict[str, Any]] = {200: {"description": "Server-sent events", "content": {EVENT_STREAM: {}}}}
BODY = {"requestBody": {"required": True, "content": {SAFETENSORS: BYTES}}}
Id = Annotated[str, Path(max_length=100)]


def session_routes(models: EdgeModels, engine: Engine, sessions: SessionStore, metrics: EdgeMetrics) -> APIRouter:
    """POST /v1/sessions, /v1/sessions/resume, /v1/sessions/{id}/handoff; GET …/events; DELETE /v1/sessions/{id}."""
    routes = APIRouter(tags=["split sessions"])
    work = SessionWork(models, engine, sessions, metrics)

    @routes.post("/v1/sessions", status_code=201, response_class=Response, responses=HANDED, summary="Begin a picture")
    async def open_session(asked: SessionRequest, request: Request) -> Response:
        sessions.check_room()
        session = Session(
            served=models.take(asked.model),
            owner=request.scope["holder"],
            order=asked.order,
            device_steps=asked.device_steps,
            channel=Channel(),
            wire=asked.wire,
            alone=asked.exact,
            deadline_s=asked.deadline_s,
            id=asked.id or "",
        )
        return await _begun(work, work.make(session), work.open(session, asked), request)

    @routes.post(
        "/v1/sessions/resume",
        status_code=201,
        response_class=Response,
        responses=HANDED,
        openapi_extra=BODY,
        summary="Go on with a picture that was begun at another edge of the same model",
    )
    async def resume_session(
        request: Request,
        device_steps: Annotated[DeviceSteps, Query()],
        order: Annotated[Order, Query()] = "device_first",
        model: Annotated[str | None, Query(max_length=200)] = None,
        wire: Annotated[Form, Query()] = "exact",
        exact: Annotated[bool, Query()] = False,
        deadline_s: Annotated[Deadline | None, Query()] = None,
        with_conditions: Annotated[bool | None, Query()] = None,
        id: Annotated[SessionId | None, Query()] = None,
    ) -> Response:
        sessions.check_room()
        data = await request.body()
        session = Session(
            served=models.take(model, digest_of(data) or None),
            owner=request.scope["holder"],
            order=order,
            device_steps=device_steps,
            channel=Channel(),
            wire=wire,
            alone=exact,
            deadline_s=deadline_s,
            id=id or "",
        )
        return await _begun(work, work.make(session), work.resume(session, data, with_conditions), request)

    @routes.get(
        "/v1/sessions/{session_id}/events",
        response_class=Response,
        responses=EVENTS,
        summary="Follow the edge's steps",
    )
    async def events(
        session_id: Id,
        request: Request,
        previews: Annotated[int, Query(ge=0, le=1000, description="a preview every so many steps; 0: none")] = 0,
        wait_s: Annotated[float, Query(ge=0, le=30, description="how long the session may take to be opened")] = 1.0,
    ) -> Response:
        until = time.monotonic() + wait_s
        while True:
            try:
                session = sessions.get(session_id, request.scope["holder"])
                break
            except EdgeFault:
                if time.monotonic() >= until or not re.fullmatch(ID_PATTERN, session_id):
                    raise
                await asyncio.sleep(0.02)
        session.channel.check_room()
        return event_stream(session.channel.read(previews))

    @routes.post(
        "/v1/sessions/{session_id}/handoff",
        response_class=Response,
        responses=PICTURE,
        openapi_extra=BODY,
        summary="Hand back a picture, for the edge to end it",
    )
    async def take_back(
        session_id: Id,
        request: Request,
        result: Annotated[Literal["png", "latents", "both"], Query()] = "png",
        deadline_s: Annotated[Deadline | None, Query()] = None,
    ) -> Response:
        session = sessions.get(session_id, request.scope["holder"])
        data = await request.body()
        with sessions.working(session):
            answer = await while_connected(
                request.receive, work.finish(session, data, result, deadline_s or session.deadline_s)
            )
        sessions.drop(session, "finished")
        return answer

    @routes.delete("/v1/sessions/{session_id}", status_code=204, summary="Give a picture up, and end work on it")
    async def close_session(session_id: Id, request: Request) -> Response:
        sessions.drop(sessions.get(session_id, request.scope["holder"]), "closed")
        return Response(status_code=204)

    return routes


async def _begun(work: SessionWork, session: Session, begin: Any, request: Request) -> Response:
    """Carry out a session's first part; the session is dropped when that fails, or nobody waits for it."""
    try:
        with work.sessions.working(session):
            answer: Response = await while_connected(request.receive, begin)
    except BaseException:
        work.sessions.drop(session, "failed")
        raise
    return answer
