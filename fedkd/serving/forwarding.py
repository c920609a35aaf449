"""Requests that any edge may answer: drawn here or sent on once, and to the next edge when one refuses or dies."""

from __future__ import annotations

import json
import logging
from collections.abc import Awaitable, Callable, Iterable
from dataclasses import dataclass, field
from urllib.parse import quote

import httpx
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from fedkd.serving.asked import IMAGES, Asked
from fedkd.serving.asking import PeerLost, asking, pieces, whole
from fedkd.serving.balancing import Candidate
from fedkd.serving.dispatcher import Dispatcher
from fedkd.serving.engine import while_connected
from fedkd.serving.errors import EdgeFault, fault_response
from fedkd.serving.homes import OWNER_HEADER, Homes
from fedkd.serving.outgoing import Events, Outgoing, is_stream, passed_on
from fedkd.serving.peer_metrics import PeerMetrics
from fedkd.serving.workload import Workload

log = logging.getLogger("fedkd.serving")
HOP_HEADER, WORK_HEADER, MODEL_HEADER = "X-Fedkd-Hop", "X-Fedkd-Work", "X-Fedkd-Model"
BUSY = (429, 503)
ELSEWHERE = {(401, ""), (403, ""), (404, "model_not_found"), (409, "model_changed")}
RawHeaders = list[tuple[bytes, bytes]]


@dataclass
class Refusal:
    """An edge's answer that another edge may better; `retry_after_s` is what it said of coming again."""

    status: int
    headers: RawHeaders
    content: bytes
    edge: str
    retry_after_s: float = field(init=False)

    def __post_init__(self) -> None:
        said = dict(self.headers).get(b"retry-after", b"")
        self.retry_after_s = float(said) if said.isdigit() else float("inf")


class Forwarding:
    """Carries out what the dispatcher chooses; `app` is this edge's own service."""

    def __init__(
        self,
        app: ASGIApp,
        dispatcher: Dispatcher,
        workload: Workload,
        homes: Homes,
        http: httpx.AsyncClient,
        metrics: PeerMetrics,
    ) -> None:
        self.app, self.dispatcher, self.workload = app, dispatcher, workload
        self.homes, self.http, self.metrics = homes, http, metrics

    async def answer(self, asked: Asked, chosen: Candidate | None, scope: Scope, receive: Receive, send: Send) -> None:
        """Have `asked` answered by the edge `chosen`, else by one after the other; each is asked once."""
        out, tried = Outgoing(send), set[str]()
        refusal: Refusal | None = None
        while chosen is not None:
            tried.add(chosen.url)
            here = chosen.peer is None
            self.metrics.dispatched.labels("here" if here else chosen.url).inc()
            refused = await (self._here if here else self._there)(asked, chosen, scope, receive, out)
            if refused is None:
                return
            if refusal is None or refused.retry_after_s < refusal.retry_after_s:
                refusal = refused
            chosen = self.dispatcher.choose(asked, tried)
        if not tried:  # it says what is wrong with the request
            async with self.workload.drawing(0.0):
                await self.app(scope, replayed(asked.body, receive), send)
        elif out.begun:
            await out.fail(_gone(asked).body())
        elif refusal is not None and refusal.status:
            await out.whole(refusal.status, refusal.headers, refusal.content, refusal.edge)
        else:
            raise _gone(asked)

    async def _here(
        self, asked: Asked, chosen: Candidate, scope: Scope, receive: Receive, out: Outgoing
    ) -> Refusal | None:
        """Drawn at this edge, which may refuse too."""
        kept: list[Message] = []
        events: Events | None = None

        async def send(message: Message) -> None:
            nonlocal events
            if message["type"] == "http.response.start":
                if message["status"] in BUSY or (out.begun and message["status"] != 200):
                    kept.append(message)
                elif is_stream(message):
                    events = Events()
                    await out.stream(message["headers"], chosen.url)
                else:
                    out.begun = True
                    await out.send({**message, "headers": _told(message["headers"], chosen.url)})
            elif kept:
                kept.append(message)
            elif events is not None:
                for event in events.feed(message.get("body", b"")):
                    await out.event(event)
                if not message.get("more_body", False):
                    await out.end()
            else:
                await out.send(message)

        model = self.dispatcher.model_of(asked)
        try:
            async with self.workload.drawing(chosen.flop, model):
                body = asked.sent(model)
                await self.app({**scope, "query_string": asked.query.encode()}, replayed(body, receive), send)
        except EdgeFault as error:  # of a model that cannot be fetched
            told = fault_response(error)
            return Refusal(error.status, list(told.raw_headers), bytes(told.body), chosen.url)
        if not kept:
            return None
        content = b"".join(message.get("body", b"") for message in kept[1:])
        return Refusal(kept[0]["status"], list(kept[0]["headers"]), content, chosen.url)

    async def _there(
        self, asked: Asked, chosen: Candidate, scope: Scope, receive: Receive, out: Outgoing
    ) -> Refusal | None:
        """Drawn by a peer, if it answers; the client's leaving ends its work there too."""
        peer = chosen.peer
        assert peer is not None
        if asked.session:
            self.homes.remember(asked.session, peer)
        try:
            with peer.holding(chosen.flop):
                refused = await while_connected(receive, self._relay(asked, chosen, scope, out))
        except PeerLost as lost:
            log.warning("%s; the request goes elsewhere", lost)
            self.metrics.forwarded.labels(chosen.url, "failed").inc()
            self.homes.forget(asked.session)
            return Refusal(0, [], b"", chosen.url)
        except EdgeFault:
            self.metrics.forwarded.labels(chosen.url, "gone").inc()
            raise
        if refused is not None:
            self.homes.forget(asked.session)
        self.metrics.forwarded.labels(chosen.url, "answered" if refused is None else "refused").inc()
        return refused

    async def _relay(self, asked: Asked, chosen: Candidate, scope: Scope, out: Outgoing) -> Refusal | None:
        peer = chosen.peer
        assert peer is not None
        model = self.dispatcher.model_of(asked)
        told = {WORK_HEADER: f"{chosen.flop:.6g}", MODEL_HEADER: quote(model)}
        headers, body = {**told_of(scope, self.dispatcher.here), **told}, asked.sent(model)
        async with asking(self.http, peer, "POST", asked.url, headers, body) as answer:
            raw = list(answer.headers.raw)
            if answer.status_code == 200 and is_stream({"type": "", "headers": raw}):
                await out.stream(raw, chosen.url)
                events = Events()
                async for piece in pieces(peer, answer):
                    for event in events.feed(piece):
                        if event.startswith(b"event: error") and _closing(event):
                            raise PeerLost(f"the edge at {peer.url} is closing")
                        await out.event(event)
                await out.end()
                return None
            content = await whole(peer, answer)
            status = answer.status_code
            code = _code(status, content)
            # A picture that nobody has cancelled was cancelled by its edge, which is closing.
            closing = asked.path == IMAGES and (status, code) == (409, "cancelled")
            if status in BUSY or closing or (status, code) in ELSEWHERE or (out.begun and status != 200):
                if status in (401, 403):
                    log.warning("the edge at %s does not take this edge's peer token", peer.url)
                    peer.doubt()
                return Refusal(status if status in BUSY else 0, raw, content, chosen.url)
            await out.whole(status, raw, content, chosen.url)
            return None


def told_of(scope: Scope, here: str) -> dict[str, str]:
    """The headers of a request that a peer needs: what it is, for whom, and that it has been sent on already."""
    passed = (b"content-type", b"accept", b"range", b"if-range", b"if-none-match")
    kept = {name.decode(): value.decode("latin-1") for name, value in scope["headers"] if name in passed}
    return {**kept, HOP_HEADER: here, OWNER_HEADER: quote(scope.get("holder", ""))}


def replayed(body: bytes, receive: Receive) -> Callable[[], Awaitable[Message]]:
    """`receive` for a request whose body has been read."""
    told = False

    async def again() -> Message:
        nonlocal told
        if told:
            return await receive()
        told = True
        return {"type": "http.request", "body": body, "more_body": False}

    return again


def _told(headers: Iterable[tuple[bytes, bytes]], edge: str) -> RawHeaders:
    length = [(name, value) for name, value in headers if name.lower() == b"content-length"]
    return [*passed_on(headers, edge), *length]


def _code(status: int, content: bytes) -> str:
    if status in (401, 403):
        return ""
    try:
        return str(json.loads(content)["error"]["code"])
    except (ValueError, KeyError, TypeError):
        return "?"


def _closing(event: bytes) -> bool:
    return any(code in event for code in (b'"code": "closing"', b'"code": "cancelled"'))


def _gone(asked: Asked) -> EdgeFault:
    what = "pictures" if asked.path == IMAGES else "sessions"
    return EdgeFault(503, f"no edge that takes {what} of this model answers now", code="no_edge", retry_after_s=1.0)
