"""What an edge counts and measures, in Prometheus' form."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from typing import Any

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest
from prometheus_client.core import GaugeMetricFamily
from prometheus_client.metrics_core import Metric
from starlette.types import Scope

CONTENT_TYPE = "text/plain; version=0.0.4; charset=utf-8"
SECONDS = (0.005, 0.02, 0.1, 0.5, 1, 2, 5, 10, 30, 60, 120, 300)
METHODS = {"GET", "HEAD", "POST", "PUT", "PATCH", "DELETE", "OPTIONS"}


class EdgeMetrics:
    """Counters, gauges and histograms of one edge, in a registry of their own."""

    def __init__(self) -> None:
        self.registry = on = CollectorRegistry()
        labels = ["route", "method", "status"]
        self.requests = Counter("fedkd_requests", "Requests answered.", labels, registry=on)
        self.seconds = Histogram("fedkd_request_seconds", "Time of a request.", ["route"], buckets=SECONDS, registry=on)
        self.received = Counter("fedkd_received_bytes", "Bytes of requests' bodies.", registry=on)
        self.sent = Counter("fedkd_sent_bytes", "Bytes of answers' bodies.", registry=on)
        self.pictures = Counter("fedkd_pictures", "Pictures decoded for clients.", ["model"], registry=on)
        self.sessions = Counter("fedkd_sessions", "Split sessions by how they ended.", ["outcome"], registry=on)
        self.swaps = Counter("fedkd_model_swaps", "Changes of the served version.", ["model", "outcome"], registry=on)
        self.shared = Counter(
            "fedkd_shared_pictures", "Pictures that began with others' steps.", ["model", "source"], registry=on
        )
        self.steps_saved = Counter("fedkd_shared_steps_saved", "Steps not run again.", ["model"], registry=on)
        self.probes = Counter("fedkd_sharing_probes", "Steps run to tell what prompts mean.", ["model"], registry=on)
        self.models = Gauge(
            "fedkd_model_users", "Requests and sessions on a model.", ["model", "version", "state"], registry=on
        )

    def follow(self, name: str, what: str, read: Callable[[], float]) -> None:
        """A gauge that is read anew each time."""
        Gauge(name, what, registry=self.registry).set_function(read)

    def follow_all(self, prefix: str, what: str, read: Callable[[], Mapping[str, Any]]) -> None:
        """A gauge `prefix_NAME` for each number that `read` gives."""
        self.registry.register(_Numbers(prefix, what, read))

    def request(self, scope: Scope, status: int, seconds: float, received: int, sent: int) -> None:
        """Count one request; unknown paths and methods share one label, so that junk makes no new series."""
        route = getattr(scope.get("route"), "path", "other")
        method = scope["method"] if scope["method"] in METHODS else "other"
        self.requests.labels(route, method, str(status)).inc()
        self.seconds.labels(route).observe(seconds)
        self.received.inc(received)
        self.sent.inc(sent)

    def text(self) -> bytes:
        """All of it as Prometheus reads it."""
        return generate_latest(self.registry)


class _Numbers:
    """Numbers that somebody else keeps, read when they are asked for."""

    def __init__(self, prefix: str, what: str, read: Callable[[], Mapping[str, Any]]) -> None:
        self.prefix, self.what, self.read = prefix, what, read

    def collect(self) -> Iterable[Metric]:
        """One gauge for each finite number."""
        for name, value in self.read().items():
            if isinstance(value, int | float):
                yield GaugeMetricFamily(f"{self.prefix}_{name}", self.what, value=float(value))

    def describe(self) -> Iterable[Metric]:
        """Nothing in advance: the names are known when they are read."""
        return ()
