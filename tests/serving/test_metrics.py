"""The edge counts what it does; junk makes no new series."""

from __future__ import annotations

from prometheus_client.parser import text_string_to_metric_families

from fedkd.serving.metrics import EdgeMetrics


def values(metrics: EdgeMetrics) -> dict[tuple[str, ...], float]:
    found = {}
    for family in text_string_to_metric_families(metrics.text().decode()):
        for sample in family.samples:
            found[(sample.name, *sorted(sample.labels.values()))] = sample.value
    return found


class Route:
    path = "/v1/model"


def test_requests_are_counted_by_route_method_and_status() -> None:
    metrics = EdgeMetrics()
    for _ in range(2):
        metrics.request({"method": "GET", "route": Route}, 200, 0.1, 10, 20)
    found = values(metrics)
    assert found["fedkd_requests_total", "/v1/model", "200", "GET"] == 2
    assert found["fedkd_received_bytes_total",] == 20 and found["fedkd_sent_bytes_total",] == 40
    assert found["fedkd_request_seconds_count", "/v1/model"] == 2


def test_junk_paths_and_methods_share_one_series() -> None:
    metrics = EdgeMetrics()
    metrics.request({"method": "GET"}, 404, 0.1, 0, 0)
    before = len(metrics.text().splitlines())
    for place in range(100):
        metrics.request({"method": "GET", "path": f"/{place}"}, 404, 0.1, 0, 0)
    assert len(metrics.text().splitlines()) == before
    for place in range(100):
        metrics.request({"method": f"M{place}"}, 405, 0.1, 0, 0)
    assert values(metrics)["fedkd_requests_total", "405", "other", "other"] == 100


def test_numbers_kept_elsewhere_are_read_when_asked_for() -> None:
    metrics, numbers = EdgeMetrics(), {"steps": 1.0, "form": "text"}
    metrics.follow_all("fedkd_engine", "The engine's.", lambda: numbers)
    assert values(metrics)["fedkd_engine_steps",] == 1
    numbers["steps"] = 5
    assert values(metrics)["fedkd_engine_steps",] == 5
