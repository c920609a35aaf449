"""Session affinity: which edge holds a split session, remembered where it was opened and asked for elsewhere."""

from __future__ import annotations

import asyncio
import time
from collections import OrderedDict
from collections.abc import Iterable
from urllib.parse import quote

import httpx

from fedkd.serving.peers import Peer

SESSION_PATH = "/v1/peers/sessions"
OWNER_HEADER = "X-Fedkd-Owner"
REMEMBERED = 10_000
ASK_S = 2.0


class Homes:
    """The peers that hold sessions, by session; each is forgotten `lifetime_s` after its last use."""

    def __init__(self, peers: Iterable[Peer], http: httpx.AsyncClient, lifetime_s: float) -> None:
        self.peers, self.http, self.lifetime_s = list(peers), http, lifetime_s
        self._known: OrderedDict[str, tuple[Peer, float]] = OrderedDict()

    def remember(self, session: str, peer: Peer) -> None:
        """The session is opened at `peer`."""
        self._known[session] = peer, time.monotonic() + self.lifetime_s
        self._known.move_to_end(session)
        while len(self._known) > REMEMBERED:
            self._known.popitem(last=False)

    def forget(self, session: str) -> None:
        """It is not."""
        self._known.pop(session, None)

    def get(self, session: str) -> Peer | None:
        """Where the session is known to be."""
        found = self._known.get(session)
        if found is None or found[1] < time.monotonic():
            return None
        self.remember(session, found[0])
        return found[0]

    async def find(self, session: str, owner: str) -> Peer | None:
        """Where the session is, if need be by asking all peers."""
        if found := self.get(session):
            return found
        asked = [peer for peer in self.peers if peer.healthy]
        for peer, holds in zip(
            asked, await asyncio.gather(*(self._holds(p, session, owner) for p in asked)), strict=True
        ):
            if holds:
                self.remember(session, peer)
                return peer
        return None

    async def _holds(self, peer: Peer, session: str, owner: str) -> bool:
        try:
            url = f"{peer.url}{SESSION_PATH}/{session}"
            answer = await self.http.get(url, headers={OWNER_HEADER: quote(owner)}, timeout=ASK_S)
        except httpx.HTTPError:
            return False
        return answer.status_code == 204
