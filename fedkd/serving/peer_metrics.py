"""What an edge counts of the others: who drew, what failed on the way, and how old its knowledge is."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial

from prometheus_client import Counter, Gauge

from fedkd.serving.metrics import EdgeMetrics
from fedkd.serving.peers import Peer


class PeerMetrics:
    """Counters and gauges beside those of the edge."""

    def __init__(self, metrics: EdgeMetrics, peers: Sequence[Peer]) -> None:
        on = metrics.registry
        self.dispatched = Counter("fedkd_dispatched", "Requests by the edge chosen for them.", ["edge"], registry=on)
        self.forwarded = Counter(
            "fedkd_forwarded", "Requests sent to a peer, by what became of them.", ["peer", "outcome"], registry=on
        )
        self.for_peers = Counter("fedkd_answered_for_peers", "Requests that other edges sent here.", registry=on)
        age = Gauge("fedkd_peer_report_age_seconds", "Age of a peer's last report.", ["peer"], registry=on)
        healthy = Gauge("fedkd_peer_healthy", "Whether a peer may be sent requests.", ["peer"], registry=on)
        for peer in peers:
            age.labels(peer.url).set_function(partial(getattr, peer, "age_s"))
            healthy.labels(peer.url).set_function(partial(getattr, peer, "healthy"))
