"""Where a request to one of several edges goes: to the dispatcher, to who holds its session, or to this edge alone."""

from __future__ import annotations

import asyncio
import math
import re
import time
from collections.abc import Awaitable, Callable
from typing import Any
from urllib.parse import parse_qsl, unquote, urlencode

from starlette.datastructures import Headers
from starlette.exceptions import HTTPException
from starlette.responses import JSONResponse, RedirectResponse
from starlette.types import ASGIApp, Receive, Scope, Send

from fedkd.serving.asked import IMAGES, RESUME, SESSIONS, asked_of
from fedkd.serving.cluster import Cluster
from fedkd.serving.errors import EdgeFault, error_response, fault_response
from fedkd.serving.forwarding import HOP_HEADER, MODEL_HEADER, WORK_HEADER, Forwarding, replayed
from fedkd.serving.homes import OWNER_HEADER
from fedkd.serving.messages import ID_PATTERN, ModelCard, ModelList
from fedkd.serving.passing import pass_on

Handler = Callable[[Scope, Receive, Send], Awaitable[None]]
FORWARD_HEADER = "X-Fedkd-Forward"  # a client's wish: proxy, redirect, or here
HOP_QUERY = "fedkd_hop"  # what a redirected client brings along: the model
DISPATCHED = (IMAGES, SESSIONS, RESUME)
SESSION = re.compile(r"/v1/sessions/([^/]+)(/handoff|/events)?")
MODEL = re.compile(r"/v1/models/([^/]+)")
COMPONENT = re.compile(r"/v1/components/([0-9a-f]{64})")
LOOK_AGAIN_S = 0.1


class Crossroads:
    """ASGI middleware behind the gate; `app` is this edge's own service, which has the last word on everything else.

    A request that an edge has sent on already (HOP_HEADER) is answered here, whatever the answer is: nothing
    is sent on twice.
    """

    def __init__(self, app: ASGIApp, *, cluster: Cluster) -> None:
        self.app, self.cluster = app, cluster
        self.forwarding = Forwarding(
            app, cluster.dispatcher, cluster.workload, cluster.homes, cluster.http, cluster.metrics
        )

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer, pass on, or let the edge's own service answer."""
        if scope["type"] != "http":
            return await self.app(scope, receive, send)
        headers = Headers(scope=scope)
        try:
            if HOP_HEADER in headers or HOP_QUERY.encode() in scope["query_string"]:
                await self._landed(headers, scope, receive, send)
            else:
                await (self._handler(headers, scope) or self.app)(scope, receive, send)
        except EdgeFault as error:
            await fault_response(error)(scope, receive, send)
        except HTTPException as error:  # of a body that is too large or too slow
            await error_response(error.status_code, str(error.detail), code=f"http_{error.status_code}")(
                scope, receive, send
            )

    def _handler(self, headers: Headers, scope: Scope) -> Handler | None:
        method, path = scope["method"], scope["path"]
        if method == "POST" and path in DISPATCHED:
            scope["route"] = _Route(path)
            return None if headers.get(FORWARD_HEADER) == "here" else self._dispatch
        if found := SESSION.fullmatch(path):
            return self._session_of(found[1]) if re.fullmatch(ID_PATTERN, found[1]) else None
        if method == "GET" and path == "/v1/models":
            return self._models
        if method == "GET" and ((found := MODEL.fullmatch(path)) or path == "/v1/model"):
            return self._about(found[1] if found else None)
        if method in ("GET", "HEAD") and (found := COMPONENT.fullmatch(path)):
            return self._component(found[1])
        return None

    async def _landed(self, headers: Headers, scope: Scope, receive: Receive, send: Send) -> None:
        if scope.get("peer"):
            scope["holder"] = unquote(headers.get(OWNER_HEADER, ""))
        if scope["method"] != "POST" or scope["path"] not in DISPATCHED:
            return await self.app(scope, receive, send)
        self.cluster.metrics.for_peers.inc()
        query = dict(parse_qsl(scope["query_string"].decode("latin-1")))
        model = query.get(HOP_QUERY) or unquote(headers.get(MODEL_HEADER, ""))
        flop = _figure(headers.get(WORK_HEADER, "0")) if scope.get("peer") else 0.0
        async with self.cluster.workload.drawing(flop, model):
            await self.app(scope, receive, send)

    async def _dispatch(self, scope: Scope, receive: Receive, send: Send) -> None:
        body = await _body(receive)
        asked = asked_of(scope["path"], scope["query_string"].decode("latin-1"), body)
        if asked is None:
            return await self.app(scope, replayed(body, receive), send)
        self.cluster.dispatcher.count(asked)
        chosen = self.cluster.dispatcher.choose(asked)
        way = Headers(scope=scope).get(FORWARD_HEADER, self.cluster.forward)
        if way == "redirect" and chosen is not None and chosen.peer is not None:
            query = urlencode([*parse_qsl(asked.query), (HOP_QUERY, self.cluster.dispatcher.model_of(asked))])
            told = {"X-Fedkd-Edge": chosen.url}
            return await RedirectResponse(f"{chosen.url}{asked.path}?{query}", 307, told)(scope, receive, send)
        await self.forwarding.answer(asked, chosen, scope, receive, send)

    def _session_of(self, session: str) -> Handler:
        async def answer(scope: Scope, receive: Receive, send: Send) -> None:
            cluster, query = self.cluster, dict(parse_qsl(scope["query_string"].decode("latin-1")))
            until = time.monotonic()
            if scope["path"].endswith("/events"):
                until += min(_figure(query.get("wait_s", "1")), 30.0)
            while True:
                if cluster.holds(session):
                    return await self.app(scope, receive, send)
                peer = await cluster.homes.find(session, scope.get("holder", ""))
                if peer is not None or time.monotonic() >= until:
                    break
                await asyncio.sleep(LOOK_AGAIN_S)
            if peer is None:
                return await self.app(scope, receive, send)
            scope["route"] = _Route(re.sub(r"/sessions/[^/]+", "/sessions/{session_id}", scope["path"]))
            body = await _body(receive)
            if not await pass_on(cluster.http, peer, cluster.here, scope, receive, send, body):
                raise EdgeFault(
                    404, "the edge that held this session does not answer", param="id", code="session_not_found"
                )

        return answer

    def _about(self, name: str | None) -> Handler:
        async def answer(scope: Scope, receive: Receive, send: Send) -> None:
            query = dict(parse_qsl(scope["query_string"].decode("latin-1")))
            wanted, digest = name or query.get("model", ""), "" if name else query.get("digest", "")
            peer = None if self.cluster.serves(wanted, digest) else self.cluster.dispatcher.holder_of(wanted, digest)
            if peer is None or not await self._passed(peer, scope, receive, send):
                async with self.cluster.workload.on_demand.holding(wanted):
                    await self.app(scope, receive, send)

        return answer

    def _component(self, digest: str) -> Handler:
        async def answer(scope: Scope, receive: Receive, send: Send) -> None:
            if self.cluster.models.component(digest) is None:
                for peer in self.cluster.peers:
                    if peer.healthy and await self._passed(peer, scope, receive, send, only=(200, 206, 304, 416)):
                        return
            await self.app(scope, receive, send)

        return answer

    async def _passed(self, peer: Any, scope: Scope, receive: Receive, send: Send, only: tuple[int, ...] = ()) -> bool:
        return await pass_on(self.cluster.http, peer, self.cluster.here, scope, receive, send, b"", only)

    async def _models(self, scope: Scope, receive: Receive, send: Send) -> None:
        own = self.cluster.models.current()
        cards = {served.name: ModelCard(id=served.name, created=served.created) for served in own}
        for peer in self.cluster.peers:
            if peer.healthy and peer.report is not None:
                for name, facts in peer.report.models.items():
                    cards.setdefault(name, ModelCard(id=name, created=facts.created))
        for name in self.cluster.workload.on_demand.sources:
            cards.setdefault(name, ModelCard(id=name, created=0))
        scope["route"] = _Route("/v1/models")
        await JSONResponse(ModelList(data=list(cards.values())).model_dump())(scope, receive, send)


class _Route:
    """What a request is counted as where no route of the framework saw it."""

    def __init__(self, path: str) -> None:
        self.path = path


async def _body(receive: Receive) -> bytes:
    parts = []
    while True:
        message = await receive()
        if message["type"] == "http.disconnect":
            raise EdgeFault(499, "the client went away", code="client_closed_request")
        parts.append(message.get("body", b""))
        if not message.get("more_body", False):
            return b"".join(parts)


def _figure(text: str) -> float:
    try:
        found = float(text)
    except ValueError:
        return 0.0
    return found if math.isfinite(found) and 0 <= found <= 1e30 else 0.0
