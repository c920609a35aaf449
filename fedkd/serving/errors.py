"""Errors in OpenAI's form for everything that can go wrong, and the gate that every request passes."""

from __future__ import annotations

import hmac
import logging
from typing import Any

from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse
from starlette.exceptions import HTTPException
from starlette.types import ASGIApp, Message, Receive, Scope, Send

log = logging.getLogger("fedkd.serving")


class EdgeFault(Exception):
    """A request that the edge answers with `status` and an error in OpenAI's form."""

    def __init__(
        self, status: int, message: str, *, param: str | None = None, code: str | None = None
    ) -> None:
        super().__init__(message)
        self.status, self.message, self.param, self.code = status, message, param, code


def error_response(
    status: int, message: str, param: str | None = None, code: str | None = None
) -> JSONResponse:
    """`{"error": {message, type, param, code}}`; clients are told not to retry but when the edge is busy."""
    kind = "server_error" if status >= 500 else "invalid_request_error"
    if status == 401:
        kind = "authentication_error"
    headers = {"Retry-After": "1"} if status in (429, 503) else {"x-should-retry": "false"}
    if status == 401:
        headers["WWW-Authenticate"] = "Bearer"
    body = {"error": {"message": message, "type": kind, "param": param, "code": code}}
    return JSONResponse(body, status, headers)


def install_handlers(app: FastAPI) -> None:
    """Answer faults, the framework's own 4xx and 422, and defects, all in one form."""

    @app.exception_handler(EdgeFault)
    async def fault(_: Request, error: EdgeFault) -> JSONResponse:
        return error_response(error.status, error.message, error.param, error.code)

    @app.exception_handler(HTTPException)
    async def http(_: Request, error: HTTPException) -> JSONResponse:
        return error_response(error.status_code, str(error.detail), code=f"http_{error.status_code}")

    @app.exception_handler(RequestValidationError)
    async def invalid(_: Request, error: RequestValidationError) -> JSONResponse:
        first: dict[str, Any] = dict(error.errors()[0])
        place = [str(part) for part in first.get("loc", ()) if part not in ("body", "query", "path")]
        param = ".".join(place) or None
        message = f"{param}: {first.get('msg')}" if param else str(first.get("msg"))
        return error_response(422, message, param, "invalid_value")

    @app.exception_handler(Exception)
    async def defect(_: Request, error: Exception) -> JSONResponse:
        return error_response(500, f"the edge failed: {type(error).__name__}", code="internal_error")


class Gate:
    """ASGI middleware: bearer token (healthz excepted) and a limit on the size of a request's body."""

    def __init__(self, app: ASGIApp, *, token: str, max_body_bytes: int) -> None:
        self.app, self.token, self.max_body_bytes = app, token, max_body_bytes

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Let a request pass, or answer 401 or 413."""
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        headers = dict(scope["headers"])
        if self.token and scope["path"] != "/healthz":
            given = headers.get(b"authorization", b"")
            if not hmac.compare_digest(given, f"Bearer {self.token}".encode()):
                refusal = error_response(401, "missing or wrong bearer token", code="invalid_api_key")
                await refusal(scope, receive, send)
                return
        length = headers.get(b"content-length", b"0")
        if not length.isdigit() or int(length) > self.max_body_bytes:
            await self._too_large()(scope, receive, send)
            return
        seen = 0

        async def counted() -> Message:
            nonlocal seen
            message = await receive()
            seen += len(message.get("body", b""))
            if seen > self.max_body_bytes:
                raise HTTPException(413, f"the request is larger than {self.max_body_bytes} bytes")
            return message

        await self.app(scope, counted, send)

    def _too_large(self) -> JSONResponse:
        return error_response(
            413, f"the request is larger than {self.max_body_bytes} bytes", code="too_large"
        )
