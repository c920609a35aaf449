"""Errors in OpenAI's form for everything that can go wrong at an edge or a registry."""

from __future__ import annotations

import logging
import math
from collections.abc import Mapping
from typing import Any

from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse
from starlette.exceptions import HTTPException

log = logging.getLogger("fedkd.serving")
BUSY = (429, 503)


class EdgeFault(Exception):
    """A request that the edge answers with `status` and an error in OpenAI's form.

    `retry_after_s` is when a refusal for lack of room (429, 503) is worth another try.
    """

    def __init__(
        self,
        status: int,
        message: str,
        *,
        param: str | None = None,
        code: str | None = None,
        retry_after_s: float = 1.0,
    ) -> None:
        super().__init__(message)
        self.status, self.message, self.param, self.code = status, message, param, code
        self.retry_after_s = retry_after_s

    def body(self) -> dict[str, Any]:
        """The error as OpenAI's clients read it."""
        return error_body(self.status, self.message, self.param, self.code)


def error_body(status: int, message: str, param: str | None, code: str | None) -> dict[str, Any]:
    """`{"error": {message, type, param, code}}`."""
    kind = "server_error" if status >= 500 else "invalid_request_error"
    kind = {401: "authentication_error", 429: "rate_limit_error"}.get(status, kind)
    return {"error": {"message": message, "type": kind, "param": param, "code": code}}


def error_response(
    status: int,
    message: str,
    param: str | None = None,
    code: str | None = None,
    *,
    retry_after_s: float = 1.0,
    headers: Mapping[str, str] | None = None,
) -> JSONResponse:
    """An error's answer; clients are told not to retry but when the edge is busy."""
    wait_s = str(max(1, math.ceil(retry_after_s)))
    told = {"Retry-After": wait_s} if status in BUSY else {"x-should-retry": "false"}
    if status == 401:
        told["WWW-Authenticate"] = "Bearer"
    return JSONResponse(error_body(status, message, param, code), status, {**(headers or {}), **told})


def fault_response(error: EdgeFault) -> JSONResponse:
    """The answer that a fault is."""
    return error_response(error.status, error.message, error.param, error.code, retry_after_s=error.retry_after_s)


def install_handlers(app: FastAPI) -> None:
    """Answer faults, the framework's own 4xx and 422, and defects, all in one form."""

    @app.exception_handler(EdgeFault)
    async def fault(_: Request, error: EdgeFault) -> JSONResponse:
        return fault_response(error)

    @app.exception_handler(HTTPException)
    async def http(_: Request, error: HTTPException) -> JSONResponse:
        return error_response(
            error.status_code, str(error.detail), code=f"http_{error.status_code}", headers=error.headers
        )

    @app.exception_handler(RequestValidationError)
    async def invalid(_: Request, error: RequestValidationError) -> JSONResponse:
        first: dict[str, Any] = dict(error.errors()[0])
        place = [str(part) for part in first.get("loc", ()) if part not in ("body", "query", "path")]
        param = ".".join(place)[:200] or None
        message = f"{param}: {first.get('msg')}" if param else str(first.get("msg"))
        return error_response(422, message, param, "invalid_value")

    @app.exception_handler(Exception)
    async def defect(_: Request, error: Exception) -> JSONResponse:
        log.error("a request failed", exc_info=error)
        return error_response(500, f"the edge failed: {type(error).__name__}", code="internal_error")
