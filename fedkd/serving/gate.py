"""The gate that every request passes: bearer tokens with their limits, size and time of a body, time of an answer."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Collection

from starlette.exceptions import HTTPException
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from fedkd.serving.errors import EdgeFault, error_response, fault_response
from fedkd.serving.metrics import EdgeMetrics
from fedkd.serving.tokens import TokenBook


class _SlowReader(Exception):
    """The client does not take the answer in time."""


class Gate:
    """ASGI middleware; `open_paths` need no token, and `scope["holder"]` names who asks everywhere else.

    A body larger than `max_body_bytes` is 413, one that takes longer than `body_timeout_s` is 408; a client that
    takes longer than `send_timeout_s` for one piece of an answer loses its connection.
    """

    def __init__(
        self,
        app: ASGIApp,
        *,
        tokens: TokenBook,
        max_body_bytes: int,
        body_timeout_s: float = 30.0,
        send_timeout_s: float = 60.0,
        open_paths: Collection[str] = ("/healthz",),
        metrics: EdgeMetrics | None = None,
    ) -> None:
        self.app, self.tokens, self.max_body_bytes = app, tokens, max_body_bytes
        self.body_timeout_s, self.send_timeout_s = body_timeout_s, send_timeout_s
        self.open_paths, self.metrics = frozenset(open_paths), metrics

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Let a request pass, or answer 401, 408, 413 or 429."""
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        began, status, sent_bytes = time.perf_counter(), 499, 0
        seen_bytes, deadline = 0, time.monotonic() + self.body_timeout_s
        whole = False

        async def timed_send(message: Message) -> None:
            nonlocal status, sent_bytes
            if message["type"] == "http.response.start":
                status = message["status"]
            sent_bytes += len(message.get("body", b""))
            try:
                async with asyncio.timeout(self.send_timeout_s):
                    await send(message)
            except TimeoutError:
                raise _SlowReader from None

        async def counted_receive() -> Message:
            nonlocal seen_bytes, whole
            if whole:
                return await receive()
            try:
                async with asyncio.timeout(max(0.0, deadline - time.monotonic())):
                    message = await receive()
            except TimeoutError:
                raise HTTPException(408, f"the body took longer than {self.body_timeout_s:g} seconds") from None
            seen_bytes += len(message.get("body", b""))
            if seen_bytes > self.max_body_bytes:
                raise HTTPException(413, f"the request is larger than {self.max_body_bytes} bytes")
            whole = not message.get("more_body", False)
            return message

        try:
            await self._pass(scope, counted_receive, timed_send)
        except _SlowReader:  # the answer is not whole, so the server closes the connection
            status = 499
        finally:
            if self.metrics is not None:
                self.metrics.request(scope, status, time.perf_counter() - began, seen_bytes, sent_bytes)

    async def _pass(self, scope: Scope, receive: Receive, send: Send) -> None:
        headers = dict(scope["headers"])
        holder = self.tokens.holder(headers.get(b"authorization", b"").decode("latin-1"))
        if holder is None and scope["path"] not in self.open_paths:
            refusal = error_response(401, "missing or wrong bearer token", code="invalid_api_key")
            await refusal(scope, receive, send)
            return
        length = headers.get(b"content-length", b"0")
        if not length.isdigit() or int(length) > self.max_body_bytes:
            message = f"the request is larger than {self.max_body_bytes} bytes"
            await error_response(413, message, code="too_large")(scope, receive, send)
            return
        scope["holder"] = holder.name if holder is not None else ""
        scope["peer"] = self.tokens.is_peer(holder)
        if holder is None or scope["method"] != "POST":  # what only reads is not counted
            await self.app(scope, receive, send)
            return
        try:
            with holder.request():
                await self.app(scope, receive, send)
        except EdgeFault as error:
            await fault_response(error)(scope, receive, send)
