"""A request that belongs to one certain edge, passed on there as it is, and its answer as it comes."""

from __future__ import annotations

from collections.abc import Collection

import httpx
from starlette.types import Receive, Scope, Send

from fedkd.serving.asking import PeerLost, asking, pieces
from fedkd.serving.engine import while_connected
from fedkd.serving.forwarding import told_of
from fedkd.serving.outgoing import passed_on
from fedkd.serving.peers import Peer


async def pass_on(
    http: httpx.AsyncClient,
    peer: Peer,
    here: str,
    scope: Scope,
    receive: Receive,
    send: Send,
    body: bytes,
    only: Collection[int] = (),
) -> bool:
    """Whether `peer` has answered, with one of the statuses `only` if there are any; else nothing was told.

    An answer that breaks off stays cut short: the connection to the client is closed without its end.
    """
    begun = False

    async def relay() -> bool:
        nonlocal begun
        query = scope["query_string"].decode("latin-1")
        url = scope["raw_path"].decode("latin-1") + (f"?{query}" if query else "")
        async with asking(http, peer, scope["method"], url, told_of(scope, here), body) as answer:
            if only and answer.status_code not in only:
                return False
            length = [(k.lower(), v) for k, v in answer.headers.raw if k.lower() == b"content-length"]
            headers = [*passed_on(answer.headers.raw, peer.url), *length]
            begun = True
            await send({"type": "http.response.start", "status": answer.status_code, "headers": headers})
            async for piece in pieces(peer, answer):
                await send({"type": "http.response.body", "body": piece, "more_body": True})
            await send({"type": "http.response.body", "body": b""})
        return True

    try:
        return await while_connected(receive, relay())
    except PeerLost:
        return begun
