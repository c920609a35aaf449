"""An edge among others: its peers, what it knows of them, and the routes by which they know of it."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping, Sequence
from typing import Annotated
from urllib.parse import unquote

from fastapi import APIRouter, Path, Request
from fastapi.responses import Response
from pydantic import BaseModel

from fedkd.serving.balancing import DEFAULT_RULE
from fedkd.serving.dispatcher import Dispatcher
from fedkd.serving.engine import Engine
from fedkd.serving.errors import EdgeFault
from fedkd.serving.gossip import REPORT_PATH, Gossip, peer_client
from fedkd.serving.homes import OWNER_HEADER, SESSION_PATH, Homes
from fedkd.serving.metrics import EdgeMetrics
from fedkd.serving.models import EdgeModels
from fedkd.serving.on_demand import OnDemand
from fedkd.serving.peer_metrics import PeerMetrics
from fedkd.serving.peers import EdgeReport, Peer
from fedkd.serving.sessions import SessionStore
from fedkd.serving.sources import Source
from fedkd.serving.workload import Workload

LEARN_S = 1.0


class PeerStatus(BaseModel):
    """An edge as this one knows it; `age_s` is None for this edge itself, and before the first report."""

    url: str
    healthy: bool
    age_s: float | None
    backlog_s: float | None
    requests: int | None
    flops_per_s: float | None
    models: list[str]


class Edges(BaseModel):
    """All edges, this one first."""

    data: list[PeerStatus]


class Cluster:
    """This edge's part in the cluster: reached at `here`, with `peers` by URL; used on the event loop alone."""

    def __init__(
        self,
        models: EdgeModels,
        engine: Engine,
        sessions: SessionStore,
        metrics: EdgeMetrics,
        *,
        here: str,
        peers: Sequence[str],
        token: str = "",
        dispatch: str = DEFAULT_RULE,
        forward: str = "proxy",
        gossip_s: float = 0.5,
        on_demand: Mapping[str, Source] | None = None,
        most_on_demand: int = 1,
    ) -> None:
        self.models, self.sessions, self.forward = models, sessions, forward
        self.workload = Workload(models, engine, OnDemand(models, on_demand or {}, most_on_demand))
        self.here = here or f"edge:{self.workload.edge}"
        urls = dict.fromkeys(url.rstrip("/") for url in peers)
        self.peers = [Peer(url) for url in urls if url != self.here.rstrip("/")]
        self.http = peer_client(token)
        self.gossip = Gossip(self.peers, self.http, self.workload.edge, gossip_s)
        self.dispatcher = Dispatcher(self.here, models, self.workload, self.peers, dispatch, gossip_s)
        self.homes = Homes(self.peers, self.http, sessions.lifetime_s)
        self.metrics = PeerMetrics(metrics, self.peers)

    async def run(self) -> None:
        """Keep up with the other edges, for as long as this one runs."""
        try:
            async with asyncio.TaskGroup() as group:
                group.create_task(self.gossip.run())
                group.create_task(self.workload.measure())
                group.create_task(self._learn())
        finally:
            await self.http.aclose()

    def holds(self, session: str) -> bool:
        """Whether the session is here."""
        return self.sessions.has(session)

    def serves(self, model: str, digest: str) -> bool:
        """Whether the model, or this version of it, is here."""
        try:
            self.models.find(model, digest)
        except EdgeFault:
            return False
        return True

    async def _learn(self) -> None:
        while True:
            await asyncio.sleep(LEARN_S)
            await self.workload.count()


def peer_routes(cluster: Cluster) -> APIRouter:
    """GET /v1/peers, and for peers alone GET /v1/peers/report and /v1/peers/sessions/{id}."""
    routes = APIRouter(tags=["peers"])

    def check(request: Request) -> None:
        if not request.scope.get("peer"):
            raise EdgeFault(403, "this is for other edges; send the peer token", code="not_a_peer")

    @routes.get("/v1/peers", summary="The edges that share the work, as this one knows them")
    async def peers() -> Edges:
        own = cluster.workload.report()
        found = [_status(cluster.here, own.ready, None, own)]
        return Edges(data=[*found, *(_status(p.url, p.healthy, p.age_s, p.report) for p in cluster.peers)])

    @routes.get(REPORT_PATH, summary="What this edge tells the others")
    async def report(request: Request) -> EdgeReport:
        check(request)
        return cluster.workload.report()

    @routes.get(f"{SESSION_PATH}/{{session_id}}", status_code=204, summary="Whether a session is held here")
    async def session(session_id: Annotated[str, Path(max_length=100)], request: Request) -> Response:
        check(request)
        cluster.sessions.get(session_id, unquote(request.headers.get(OWNER_HEADER, "")))
        return Response(status_code=204)

    return routes


def _status(url: str, healthy: bool, age_s: float | None, report: EdgeReport | None) -> PeerStatus:
    if report is None:
        return PeerStatus(
            url=url, healthy=healthy, age_s=None, backlog_s=None, requests=None, flops_per_s=None, models=[]
        )
    return PeerStatus(
        url=url,
        healthy=healthy,
        age_s=age_s,
        backlog_s=report.backlog_s,
        requests=report.requests,
        flops_per_s=report.flops_per_s,
        models=list(report.models),
    )
