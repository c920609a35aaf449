"""The two ways to carry out what a protocol asks of edges: blocking, and on an event loop."""

from __future__ import annotations

import asyncio
import socket
import threading
import time
from contextlib import contextmanager, suppress
from typing import Any, TypeVar

import httpx
from httpx_sse import EventSource, ServerSentEvent, SSEError

from fedkd.serving.protocol import Action, Answer, Ask, Download, Pause, Steps, Work, unreachable

Result = TypeVar("Result")
CHUNK_BYTES = 1 << 20
EVENT_STREAM = {"Accept": "text/event-stream"}
EVENTS_COME_S = 0.05  # the request itself goes first; what takes no longer needs no events


def keep_alive() -> list[tuple[int, int, int]]:
    """Socket options by which a peer that vanished without a word is noticed within half a minute."""
    options = [(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)]
    for name, value in (("TCP_KEEPIDLE", 10), ("TCP_KEEPINTVL", 5), ("TCP_KEEPCNT", 4)):
        if hasattr(socket, name):
            options.append((socket.IPPROTO_TCP, getattr(socket, name), value))
    return options


def _settings(token: str, timeout_s: float) -> dict[str, Any]:
    # no proxies (trust_env=False): an edge is addressed directly, and device and edge share none
    return {
        "headers": {"Authorization": f"Bearer {token}"} if token else {},
        "timeout": httpx.Timeout(timeout_s, connect=10.0),
        "trust_env": False,
    }


def _request(ask: Ask) -> dict[str, Any]:
    made: dict[str, Any] = {"method": ask.method, "url": f"{ask.edge}{ask.path}", "params": ask.params or None}
    made |= {"json": ask.json} if ask.json is not None else {}
    made |= {"content": ask.content} if ask.content is not None else {}
    return made | ({"timeout": 2.0} if ask.in_passing else {})


def _answer(response: httpx.Response) -> Answer:
    headers = {name.lower(): value for name, value in response.headers.items()}
    return Answer(response.status_code, headers, response.content, len(response.request.content))


def _tell(ask: Ask, event: ServerSentEvent) -> None:
    if ask.on_event is not None:
        ask.on_event(event.event, event.data)


class Connection:
    """Carries out actions one after the other, blocking; from one thread."""

    def __init__(self, *, token: str = "", timeout_s: float = 600.0) -> None:
        transport = httpx.HTTPTransport(socket_options=keep_alive())
        self._http = httpx.Client(transport=transport, **_settings(token, timeout_s))

    def close(self) -> None:
        """End all connections."""
        self._http.close()

    def run(self, steps: Steps[Result]) -> Result:
        """Carry out a protocol to its end; Ctrl-C and errors are told to it first."""
        try:
            action = next(steps)
            while True:
                try:
                    outcome = self._perform(action)
                except BaseException as error:
                    action = steps.throw(error)
                else:
                    action = steps.send(outcome)
        except StopIteration as end:
            return end.value

    def _perform(self, action: Action) -> Any:
        match action:
            case Work():
                return action.run()
            case Pause():
                return time.sleep(action.seconds)
            case Download():
                return self._download(action)
            case Ask():
                try:
                    with self._watching(action):
                        return _answer(self._http.request(**_request(action)))
                except httpx.HTTPError as error:
                    if action.in_passing:
                        return Answer(0, {}, b"", 0)
                    raise unreachable(action.edge, error) from error

    def _download(self, wanted: Download) -> tuple[int, int]:
        try:
            with self._http.stream("GET", f"{wanted.edge}{wanted.path}", headers=dict(wanted.headers)) as response:
                count = 0
                if response.status_code in (200, 206):
                    with wanted.into.open("ab" if response.status_code == 206 else "wb") as file:
                        for chunk in response.iter_bytes(CHUNK_BYTES):
                            count += file.write(chunk[: wanted.limit_bytes + 1 - count])
                            if count > wanted.limit_bytes:
                                break
                return response.status_code, count
        except httpx.HTTPError as error:
            raise unreachable(wanted.edge, error) from error

    @contextmanager
    def _watching(self, ask: Ask) -> Any:
        if not ask.watch:
            yield
            return
        opened: list[httpx.Response] = []
        over = threading.Event()
        watcher = threading.Thread(target=self._watch, args=(ask, opened, over), daemon=True)
        watcher.start()
        try:
            yield
        finally:
            over.set()
            for response in opened:  # a thread that waits in recv is woken by nothing less
                with suppress(OSError, AttributeError):
                    response.extensions["network_stream"].get_extra_info("socket").shutdown(socket.SHUT_RDWR)
            if opened:  # one that is not is on its way to a session that has ended
                watcher.join(2.0)

    def _watch(self, ask: Ask, opened: list[httpx.Response], over: threading.Event) -> None:
        with suppress(httpx.HTTPError, httpx.StreamError, SSEError, RuntimeError):
            while not over.wait(EVENTS_COME_S):
                with self._http.stream("GET", f"{ask.edge}{ask.watch}", headers=EVENT_STREAM) as response:
                    if response.status_code == 404:  # no such session yet
                        continue
                    opened.append(response)
                    if over.is_set():
                        return
                    for event in EventSource(response).iter_sse():
                        _tell(ask, event)
                    return


class AsyncConnection:
    """Carries out actions one after the other without blocking the event loop."""

    def __init__(self, *, token: str = "", timeout_s: float = 600.0) -> None:
        transport = httpx.AsyncHTTPTransport(socket_options=keep_alive())
        self._http = httpx.AsyncClient(transport=transport, **_settings(token, timeout_s))

    async def close(self) -> None:
        """End all connections."""
        await self._http.aclose()

    async def run(self, steps: Steps[Result]) -> Result:
        """Carry out a protocol to its end; a cancellation is told to it first."""
        try:
            action = next(steps)
            while True:
                try:
                    outcome = await self._perform(action)
                except BaseException as error:
                    action = steps.throw(error)
                else:
                    action = steps.send(outcome)
        except StopIteration as end:
            return end.value

    async def _perform(self, action: Action) -> Any:
        match action:
            case Work():
                return await asyncio.to_thread(action.run)
            case Pause():
                return await asyncio.sleep(action.seconds)
            case Download():
                return await self._download(action)
            case Ask():
                watcher = asyncio.create_task(self._watch(action)) if action.watch else None
                try:
                    return _answer(await self._http.request(**_request(action)))
                except httpx.HTTPError as error:
                    if action.in_passing:
                        return Answer(0, {}, b"", 0)
                    raise unreachable(action.edge, error) from error
                finally:
                    if watcher is not None:
                        watcher.cancel()
                        with suppress(asyncio.CancelledError):
                            await watcher

    async def _download(self, wanted: Download) -> tuple[int, int]:
        url = f"{wanted.edge}{wanted.path}"
        try:
            async with self._http.stream("GET", url, headers=dict(wanted.headers)) as response:
                count = 0
                if response.status_code in (200, 206):
                    with wanted.into.open("ab" if response.status_code == 206 else "wb") as file:
                        async for chunk in response.aiter_bytes(CHUNK_BYTES):
                            count += file.write(chunk[: wanted.limit_bytes + 1 - count])
                            if count > wanted.limit_bytes:
                                break
                return response.status_code, count
        except httpx.HTTPError as error:
            raise unreachable(wanted.edge, error) from error

    async def _watch(self, ask: Ask) -> None:
        with suppress(httpx.HTTPError, httpx.StreamError, SSEError, RuntimeError):
            while True:
                await asyncio.sleep(EVENTS_COME_S)
                async with self._http.stream("GET", f"{ask.edge}{ask.watch}", headers=EVENT_STREAM) as response:
                    if response.status_code == 404:  # no such session yet
                        continue
                    async for event in EventSource(response).aiter_sse():
                        _tell(ask, event)
                    return
