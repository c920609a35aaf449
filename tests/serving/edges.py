"""Edges for tests of failure: one in a thread, and a relay to an edge that dies or refuses at a chosen request."""

from __future__ import annotations

import json
import socket
import struct
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import httpx
import uvicorn

from fedkd.serving.connections import server_config
from fedkd.serving.edge import create_app
from fedkd.serving.loopback import free_port

BEFORE, AFTER, HALFWAY = "before", "after", "halfway"


@contextmanager
def serve_in_thread(folder: str, **settings: Any) -> Iterator[str]:
    """An edge in this process; yields its URL."""
    port = free_port()
    server = uvicorn.Server(server_config(create_app(folder, **settings), host="127.0.0.1", port=port))
    thread = threading.Thread(target=server.run, daemon=True)
    thread.start()
    while not server.started:
        assert thread.is_alive()
        time.sleep(0.01)
    try:
        yield f"http://127.0.0.1:{port}"
    finally:
        server.should_exit = True
        thread.join(10)


class Relay:
    """A relay to the edge at `upstream` that can die the hard way: connections reset, nobody listening.

    It dies at the first request whose line holds `dies_at`: BEFORE passing it on, AFTER the edge has done the
    work, or HALFWAY through the answer. `refuses` are (part of a request's line, status, headers) answered
    once each in place of the edge; `describes` changes what it says of its model.
    """

    def __init__(
        self,
        upstream: str,
        *,
        dies_at: str = "",
        when: str = BEFORE,
        refuses: tuple[tuple[str, int, dict[str, str]], ...] = (),
        describes: Callable[[dict[str, Any]], dict[str, Any]] | None = None,
    ) -> None:
        self.dies_at, self.when, self.describes = dies_at, when, describes
        self.refuses = list(refuses)
        self.seen: list[str] = []
        self.dead = False
        self._open: set[socket.socket] = set()
        self._http = httpx.Client(base_url=upstream, trust_env=False, timeout=60)
        relay = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def log_message(self, *_: Any) -> None:
                pass

            def setup(self) -> None:
                super().setup()
                relay._open.add(self.connection)

            def handle(self) -> None:
                try:
                    super().handle()
                except (OSError, ValueError):
                    self.close_connection = True

            def do_GET(self) -> None:
                relay.answer(self)

            do_POST = do_DELETE = do_GET

        self._server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self._server.daemon_threads = True
        threading.Thread(target=self._server.serve_forever, args=(0.01,), daemon=True).start()
        self.url = f"http://127.0.0.1:{self._server.server_address[1]}"

    def answer(self, asked: BaseHTTPRequestHandler) -> None:
        line = f"{asked.command} {asked.path}"
        self.seen.append(line)
        body = asked.rfile.read(int(asked.headers.get("Content-Length", 0)))
        dying = bool(self.dies_at) and self.dies_at in line
        if dying and self.when == BEFORE:
            return self.die()
        for place, (part, status, headers) in enumerate(self.refuses):
            if part in line:
                del self.refuses[place]
                reason = json.dumps({"error": {"message": "not now", "code": "busy"}}).encode()
                return self._send(asked, status, headers, reason)
        if "/events" in line:
            return self._send(asked, 404, {}, b"")
        kept = {k: v for k, v in asked.headers.items() if k.lower() in ("content-type", "range", "if-range")}
        found = self._http.request(
            asked.command, asked.path, content=body, headers=kept | {"Accept-Encoding": "identity"}
        )
        content = found.content
        if self.describes and asked.path.startswith("/v1/model"):
            content = json.dumps(self.describes(found.json())).encode()
        if dying and self.when == AFTER:
            return self.die()
        told = {k: v for k, v in found.headers.items() if k.startswith("x-") or k in ("etag", "content-range")}
        if dying:
            asked.send_response(found.status_code)
            asked.send_header("Content-Length", str(len(content)))
            asked.end_headers()
            asked.wfile.write(content[: len(content) // 2])
            asked.wfile.flush()
            time.sleep(0.05)  # let the first half arrive
            return self.die()
        self._send(asked, found.status_code, told, content)

    @staticmethod
    def _send(asked: BaseHTTPRequestHandler, status: int, headers: dict[str, str], content: bytes) -> None:
        asked.send_response(status)
        for name, value in headers.items():
            asked.send_header(name, value)
        asked.send_header("Content-Length", str(len(content)))
        asked.end_headers()
        asked.wfile.write(content)

    def switch(self, upstream: str) -> None:
        """From now on relay to another edge."""
        self._http.close()
        self._http = httpx.Client(base_url=upstream, trust_env=False, timeout=60)

    def die(self, *_: Any) -> None:
        """Reset every connection and listen no more."""
        if self.dead:
            return
        self.dead = True
        self._server.socket.close()
        threading.Thread(target=self._server.shutdown, daemon=True).start()
        for connection in self._open:
            try:
                connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
                connection.shutdown(socket.SHUT_RDWR)
                connection.close()
            except OSError:
                continue

    def close(self) -> None:
        """End it in order."""
        self.die()
        self._http.close()


@contextmanager
def relay(upstream: str, **settings: Any) -> Iterator[Relay]:
    """A Relay for the time of a block."""
    found = Relay(upstream, **settings)
    try:
        yield found
    finally:
        found.close()
