"""One request to another edge: given up when that edge is lost, whoever computes there is told by the connection."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Mapping
from contextlib import asynccontextmanager
from typing import TypeVar

import httpx

from fedkd.serving.peers import Peer

Result = TypeVar("Result")


class PeerLost(Exception):
    """No (whole) answer came from this peer, and none will."""


@asynccontextmanager
async def asking(
    http: httpx.AsyncClient, peer: Peer, method: str, url: str, headers: Mapping[str, str], content: bytes
) -> AsyncIterator[httpx.Response]:
    """The answer of `peer`, its body still to be read; PeerLost when none comes."""
    told = {**headers, "Accept-Encoding": "identity"}
    request = http.build_request(method, f"{peer.url}{url}", headers=told, content=content or None)
    answer = await _before_lost(peer, http.send(request, stream=True))
    try:
        yield answer
    finally:
        await answer.aclose()


async def whole(peer: Peer, answer: httpx.Response) -> bytes:
    """The whole body; PeerLost when it breaks off."""
    return await _before_lost(peer, answer.aread())


async def pieces(peer: Peer, answer: httpx.Response) -> AsyncIterator[bytes]:
    """The body as it comes; PeerLost when it breaks off."""
    parts = answer.aiter_raw()
    while piece := await _before_lost(peer, anext(parts, b"")):
        yield piece


async def _before_lost(peer: Peer, work: Awaitable[Result]) -> Result:
    task, lost = asyncio.ensure_future(work), asyncio.ensure_future(peer.lost.wait())
    try:
        await asyncio.wait({task, lost}, return_when=asyncio.FIRST_COMPLETED)
        if not task.done():
            raise PeerLost(f"the edge at {peer.url} is silent")
        return task.result()
    except (httpx.HTTPError, httpx.StreamError) as error:
        peer.doubt()
        raise PeerLost(f"the edge at {peer.url} broke off: {error}") from error
    finally:
        pending = {each for each in (task, lost) if not each.done()}
        for each in pending:
            each.cancel()
        if pending:
            await asyncio.wait(pending)
