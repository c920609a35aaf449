"""Gossip between edges: each asks the others for their report at a set period, silent ones ever more rarely."""

from __future__ import annotations

import asyncio
import logging
import random
from collections.abc import Iterable

import httpx
from pydantic import ValidationError

from fedkd.serving.connection import keep_alive
from fedkd.serving.peers import EdgeReport, Peer

log = logging.getLogger("fedkd.serving")
REPORT_PATH = "/v1/peers/report"
MOST_WAIT_S = 5.0  # between two questions to an edge that is silent
MOST_REPORT_BYTES = 4 << 20
CONNECT_S = 2.0


def peer_client(token: str) -> httpx.AsyncClient:
    """The connections to all peers; answers may take as long as pictures do."""
    options = keep_alive()
    return httpx.AsyncClient(
        transport=httpx.AsyncHTTPTransport(
            socket_options=options, limits=httpx.Limits(max_connections=None, max_keepalive_connections=64)
        ),
        headers={"Authorization": f"Bearer {token}"} if token else {},
        timeout=httpx.Timeout(None, connect=CONNECT_S),
        trust_env=False,
    )


class Gossip:
    """Keeps the reports of `peers` fresh; `own` is the name of this edge's process, for a peer that is this one."""

    def __init__(self, peers: Iterable[Peer], http: httpx.AsyncClient, own: str, period_s: float) -> None:
        self.peers, self.http, self.own, self.period_s = list(peers), http, own, period_s

    async def run(self) -> None:
        """Ask on, for as long as the edge runs."""
        async with asyncio.TaskGroup() as group:
            for peer in self.peers:
                group.create_task(self._follow(peer))

    async def ask(self, peer: Peer) -> None:
        """One question."""
        asked_at = peer.clock()
        was_healthy = peer.healthy
        try:
            answer = await self.http.get(f"{peer.url}{REPORT_PATH}", timeout=max(CONNECT_S, 4 * self.period_s))
            answer.raise_for_status()
            if len(answer.content) > MOST_REPORT_BYTES:
                raise ValueError(f"its report has {len(answer.content)} bytes")
            report = EdgeReport.model_validate_json(answer.content)
        except (httpx.HTTPError, ValidationError, ValueError) as error:
            if not peer.failures:
                reason = str(error).partition("\n")[0] or type(error).__name__
                log.warning("the edge at %s does not answer: %s", peer.url, reason)
            peer.missed()
            return
        peer.itself = report.edge == self.own
        peer.heard(report, asked_at)
        if peer.healthy and not was_healthy:
            log.info("the edge at %s answers", peer.url)

    async def _follow(self, peer: Peer) -> None:
        while not peer.itself:
            await self.ask(peer)
            wait_s = max(self.period_s, min(self.period_s * 2 ** min(peer.failures, 8), MOST_WAIT_S))
            await asyncio.sleep(wait_s * random.uniform(0.9, 1.1))  # edges started together do not ask together
