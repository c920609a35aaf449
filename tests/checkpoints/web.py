"""Real web servers on loopback: the registry's own service, and one that breaks as a test asks it to."""

from __future__ import annotations

import socket
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import uvicorn

from fedkd.serving.registry_http import create_registry_app


@contextmanager
def running(app: Any) -> Iterator[str]:
    """Serve an ASGI app from a thread; yields its URL."""
    listener = socket.create_server(("127.0.0.1", 0))
    server = uvicorn.Server(uvicorn.Config(app, log_level="error"))
    thread = threading.Thread(target=server.run, kwargs={"sockets": [listener]}, daemon=True)
    thread.start()
    while not server.started:
        time.sleep(0.01)
    try:
        yield f"http://127.0.0.1:{listener.getsockname()[1]}"
    finally:
        server.should_exit = True
        thread.join(10)


class Counted:
    """An ASGI app that notes the requests for blobs: (path, Range header)."""

    def __init__(self, app: Any) -> None:
        self.app, self.blobs = app, list[tuple[str, str]]()

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        if scope["type"] == "http" and "/blobs/" in scope["path"] and scope["method"] == "GET":
            self.blobs.append((scope["path"], dict(scope["headers"]).get(b"range", b"").decode()))
        await self.app(scope, receive, send)


@contextmanager
def registry_at(root: Path, token: str = "") -> Iterator[tuple[str, Counted]]:
    """The registry's service over `root`; yields its URL and what counts the requests for blobs."""
    counted = Counted(create_registry_app(root, token))
    with running(counted) as url:
        yield url, counted


class Broken:
    """A plain web server over a folder whose blobs end after `cut` bytes, are altered, or come slowly."""

    def __init__(
        self,
        root: Path,
        *,
        cut: int = -1,
        alter: bool = False,
        pause_s: float = 0,
        extra: int = 0,
        ranges: bool = True,
        redirect: str = "",
    ) -> None:
        self.root, self.cut, self.alter, self.pause_s, self.extra = root, cut, alter, pause_s, extra
        self.with_ranges, self.redirect = ranges, redirect
        self.ranges: list[str] = []
        self.tokens: list[str] = []
        self.sent = 0

    @contextmanager
    def running(self) -> Iterator[str]:
        """Serve from a thread; yields the URL of the registry."""
        broken = self

        class Handler(BaseHTTPRequestHandler):
            def log_message(self, *_: object) -> None:
                pass

            def do_GET(self) -> None:
                broken._answer(self)

        server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        server.daemon_threads = True
        threading.Thread(target=server.serve_forever, daemon=True).start()
        try:
            yield f"http://127.0.0.1:{server.server_port}/registry"
        finally:
            server.shutdown()
            server.server_close()

    def _answer(self, request: BaseHTTPRequestHandler) -> None:
        self.tokens.append(request.headers.get("Authorization", ""))
        if self.redirect:
            request.send_response(302)
            request.send_header("Location", self.redirect + request.path.removeprefix("/registry"))
            request.send_header("Content-Length", "0")
            request.end_headers()
            return
        path = self.root / request.path.removeprefix("/registry/")
        if not path.is_file():
            request.send_error(404)
            return
        data, wanted = path.read_bytes(), request.headers.get("Range", "") if self.with_ranges else ""
        blob = "/blobs/" in request.path
        self.ranges += [wanted] if blob else []
        start = int(wanted.removeprefix("bytes=").rstrip("-")) if wanted else 0
        body = data[start:]
        if blob and self.alter:
            body = bytes([body[0] ^ 1]) + body[1:]
        if blob and self.extra:
            body += b"x" * self.extra
        request.send_response(206 if wanted else 200)
        request.send_header("Content-Length", str(len(body)))
        request.end_headers()
        for place in range(0, len(body), 1 << 16):
            piece = body[place : place + (1 << 16)]
            if blob and 0 <= self.cut <= self.sent + len(piece):
                request.connection.close()
                return
            try:
                request.wfile.write(piece)
            except OSError:  # the other side is gone
                return
            self.sent += len(piece) if blob else 0
            if blob and self.pause_s:
                time.sleep(self.pause_s)
