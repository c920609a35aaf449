"""An answer on its way to the client, from whichever edge it comes: begun once, and no event told twice."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from typing import Any

from starlette.types import Message, Send

from fedkd.serving.streaming import event_bytes

Headers = Sequence[tuple[bytes, bytes]]
EDGE_HEADER = b"x-fedkd-edge"
OWN = {b"connection", b"keep-alive", b"transfer-encoding", b"date", b"server", b"content-length", EDGE_HEADER}


class Events:
    """Cuts a stream of bytes into whole server-sent events."""

    def __init__(self) -> None:
        self._rest = b""

    def feed(self, data: bytes) -> Iterator[bytes]:
        """The events that are whole now."""
        *events, self._rest = (self._rest + data).split(b"\n\n")
        for event in events:
            yield event + b"\n\n"


class Outgoing:
    """What the client was told so far; `edge` of the header is whoever answers first."""

    def __init__(self, send: Send) -> None:
        self.send = send
        self.begun = False
        self._told: Counter[tuple[Any, ...]] = Counter()
        self._again: Counter[tuple[Any, ...]] = Counter()

    async def whole(self, status: int, headers: Iterable[tuple[bytes, bytes]], content: bytes, edge: str) -> None:
        """The whole answer."""
        length = (b"content-length", str(len(content)).encode())
        await self._start(status, [*passed_on(headers, edge), length])
        await self.send({"type": "http.response.body", "body": content})

    async def stream(self, headers: Iterable[tuple[bytes, bytes]], edge: str) -> None:
        """Begin a stream of events, or go on with the one that broke off at another edge."""
        self._again.clear()
        if not self.begun:
            await self._start(200, passed_on(headers, edge))

    async def event(self, event: bytes) -> None:
        """Pass an event on, but one that the client has already, from an edge that broke off."""
        key = _key(event)
        if key is not None:
            self._again[key] += 1
            if self._again[key] <= self._told[key]:
                return
            self._told[key] += 1
        await self.chunk(event)

    async def chunk(self, data: bytes) -> None:
        """Pass bytes on."""
        await self.send({"type": "http.response.body", "body": data, "more_body": True})

    async def fail(self, body: dict[str, Any]) -> None:
        """End a stream that nobody can go on with."""
        await self.chunk(event_bytes("error", body))
        await self.end()

    async def end(self) -> None:
        """The stream is whole."""
        await self.send({"type": "http.response.body", "body": b"", "more_body": False})

    async def _start(self, status: int, headers: list[tuple[bytes, bytes]]) -> None:
        self.begun = True
        await self.send({"type": "http.response.start", "status": status, "headers": headers})


def passed_on(headers: Iterable[tuple[bytes, bytes]], edge: str) -> list[tuple[bytes, bytes]]:
    """The headers of another edge's answer that are not this connection's own, and who it was."""
    kept = [(name.lower(), value) for name, value in headers if name.lower() not in OWN]
    return [*kept, (EDGE_HEADER, edge.encode("ascii", "replace"))]


def is_stream(message: Message) -> bool:
    """Whether an answer's start says that events follow."""
    return any(name.lower() == b"content-type" and b"event-stream" in value for name, value in message["headers"])


def _key(event: bytes) -> tuple[Any, ...] | None:
    """What tells an event of a picture from others: the same from every edge; None for comments and errors."""
    for line in event.split(b"\n"):
        if line.startswith(b"data: "):
            try:
                said = json.loads(line[6:])
            except ValueError:
                return None
            if not isinstance(said, dict) or "type" not in said:
                return None
            return said["type"], said.get("partial_image_index"), said.get("seed")
    return None
