"""Server-sent events: progress and previews of pictures in the making, without waiting for slow readers."""

from __future__ import annotations

import asyncio
import json
from collections import deque
from collections.abc import AsyncIterator, Callable, Mapping
from typing import Any

from fastapi.responses import StreamingResponse

from fedkd.serving.errors import EdgeFault

EVENT_STREAM = "text/event-stream"
KEEP_ALIVE_S = 15.0
MAX_WAITING_EVENTS = 32  # for one reader; older progress gives way to newer
MAX_READERS = 8  # of one channel


def event_bytes(event: str, data: Mapping[str, Any]) -> bytes:
    """One event on the wire; the JSON holds no line break."""
    return f"event: {event}\ndata: {json.dumps(data)}\n\n".encode()


def event_stream(events: AsyncIterator[bytes], headers: Mapping[str, str] | None = None) -> StreamingResponse:
    """An answer that stays open while `events` come; proxies are told to pass each on at once."""
    told = {"Cache-Control": "no-store", "X-Accel-Buffering": "no", **(headers or {})}
    return StreamingResponse(kept_alive(events), media_type=EVENT_STREAM, headers=told)


async def kept_alive(events: AsyncIterator[bytes], every_s: float = KEEP_ALIVE_S) -> AsyncIterator[bytes]:
    """`events`, with a comment whenever none came for `every_s`, so that nobody takes the line for dead."""
    following: asyncio.Task[bytes] | None = None
    try:
        while True:
            following = following or asyncio.ensure_future(_following(events))
            done, _ = await asyncio.wait({following}, timeout=every_s)
            if not done:
                yield b": still here\n\n"
                continue
            found, following = following.result(), None
            if not found:
                return
            yield found
    finally:
        if following is not None:
            following.cancel()
            await asyncio.wait({following})
        close = getattr(events, "aclose", None)
        if close is not None:
            await close()


async def _following(events: AsyncIterator[bytes]) -> bytes:
    return await anext(events, b"")


class Reader:
    """One reader of a channel: a bounded line of events, in which old progress gives way."""

    def __init__(self, previews: int) -> None:
        self.previews = previews
        self._line: deque[tuple[str, dict[str, Any]]] = deque()
        self._news = asyncio.Event()
        self.ended = False

    def put(self, event: str, data: dict[str, Any]) -> None:
        """Add an event; the oldest is dropped when the line is full."""
        if len(self._line) >= MAX_WAITING_EVENTS:
            self._line.popleft()
        self._line.append((event, data))
        self._news.set()

    def end(self) -> None:
        """No more events will come."""
        self.ended = True
        self._news.set()

    async def events(self) -> AsyncIterator[tuple[str, dict[str, Any]]]:
        """Events as they come, until the end."""
        while True:
            while self._line:
                yield self._line.popleft()
            if self.ended:
                return
            self._news.clear()
            await self._news.wait()


class Channel:
    """What happens to one picture, told to any number of readers; used on the event loop alone but for `tell`."""

    def __init__(self) -> None:
        self._loop = asyncio.get_running_loop()
        self._readers: list[Reader] = []
        self._last: tuple[str, dict[str, Any]] | None = None
        self._ended = False

    def tell(self, put: Callable[..., None], *arguments: Any) -> None:
        """From another thread: `put(*arguments)` on the loop, unless it has closed."""
        try:
            self._loop.call_soon_threadsafe(put, *arguments)
        except RuntimeError:
            return

    def wants_preview(self, step: int, total: int) -> bool:
        """Whether a reader asked for a preview after this step; never after the last, where the picture comes."""
        return step < total and any(each.previews and step % each.previews == 0 for each in list(self._readers))

    def publish(self, event: str, data: dict[str, Any]) -> None:
        """Tell all readers; who comes later is told how far it is, while the edge works, or how it ended."""
        if self._ended:  # a step that was under way
            return
        if event != "session.preview":
            # What the edge once handed over says nothing of where the device stands since.
            self._last = None if event == "session.handed_over" else (event, data)
        for reader in self._readers:
            if event != "session.preview" or reader.previews:
                reader.put(event, data)

    def end(self, event: str, data: dict[str, Any]) -> None:
        """Tell all readers that it is over, once."""
        if self._ended:
            return
        self.publish(event, data)
        self._ended = True
        for reader in self._readers:
            reader.end()

    def check_room(self) -> None:
        """EdgeFault 429 when too many read already."""
        if len(self._readers) >= MAX_READERS:
            raise EdgeFault(429, f"{MAX_READERS} readers follow this session already", code="too_many_readers")

    async def read(self, previews: int = 0) -> AsyncIterator[bytes]:
        """Events for one reader, with a preview every `previews` steps (0: none)."""
        reader = Reader(previews)
        if self._last is not None:
            reader.put(*self._last)
        if self._ended:
            reader.end()
        self._readers.append(reader)
        try:
            async for event, data in reader.events():
                yield event_bytes(event, data)
        finally:
            self._readers.remove(reader)
