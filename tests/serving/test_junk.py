"""The edge is what its OpenAPI description says, whatever is sent; junk and slowness cost it nothing."""

from __future__ import annotations

import os
import socket
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import httpx
import pytest
import schemathesis
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis.errors import Unsatisfiable
from schemathesis.checks import not_a_server_error
from schemathesis.specs.openapi.checks import positive_data_acceptance

from fedkd.serving.edge import create_app
from tests.serving.running import error_of, running, until


@pytest.fixture(scope="module")
def app(tiny_folder: Path) -> Any:
    # Few evaluations and sessions: junk may well be a picture with a thousand steps.
    return create_app(str(tiny_folder), num_inference_steps=2, body_timeout_s=0.5, session_lifetime_s=5.0)


@pytest.fixture(scope="module")
def http(app: Any) -> Iterator[httpx.Client]:
    with running(app, header_timeout_s=0.5) as client:
        yield client


schemathesis.serializer.alias("application/x-safetensors", "application/octet-stream")


@pytest.mark.parametrize("mode", list(schemathesis.GenerationMode))
def test_every_route_answers_as_it_is_described(http: httpx.Client, mode: schemathesis.GenerationMode) -> None:
    schema = schemathesis.openapi.from_url(f"{http.base_url}/openapi.json")
    operations = [each.ok() for each in schema.get_all_operations()]
    assert len(operations) >= 13
    for operation in operations:

        @given(case=operation.as_strategy(generation_mode=mode))
        @settings(
            max_examples=5,
            deadline=None,
            derandomize=True,
            database=None,
            phases=[Phase.generate],
            suppress_health_check=list(HealthCheck),
        )
        def answers(case: Any) -> None:
            if isinstance(case.body, dict):
                case.body["deadline_s"] = 0.2  # a thousand steps are a good request, too
            answer = case.call(timeout=30)
            assert answer.status_code < 500 or answer.status_code == 504, answer.text
            case.validate_response(answer, excluded_checks=[positive_data_acceptance, not_a_server_error])

        with suppress(Unsatisfiable):  # what takes no parameters cannot be asked wrongly
            answers()


def test_the_edge_is_as_it_was_after_junk(app: Any, http: httpx.Client) -> None:
    assert http.get("/readyz").json() == {"status": "ready"}
    good = http.post("/v1/images/generations", json={"prompt": "a"})
    assert good.status_code == 200
    app.state.edge.sessions.clear()
    assert until(lambda: not any(users for _, users in app.state.edge.models.users()))


def raw(http: httpx.Client) -> socket.socket:
    connection = socket.create_connection((http.base_url.host, http.base_url.port or 80), timeout=20)
    return connection


def received(connection: socket.socket) -> bytes:
    """All that comes until the other side closes."""
    found = b""
    try:
        while data := connection.recv(65536):
            found += data
    except ConnectionResetError:
        pass
    return found


def test_headers_that_never_end_cost_the_connection_and_nothing_else(http: httpx.Client) -> None:
    slow = [raw(http) for _ in range(20)]
    for connection in slow:
        connection.sendall(b"GET /healthz HTTP/1.1\r\nHost: a\r\nX-")
    silent = raw(http)
    assert http.get("/healthz").status_code == 200
    for connection in [*slow, silent]:
        assert received(connection) == b""
        connection.close()


def test_a_body_that_never_ends_is_a_408(http: httpx.Client) -> None:
    with raw(http) as connection:
        connection.sendall(
            b"POST /v1/sessions HTTP/1.1\r\nHost: a\r\nContent-Type: application/json\r\nContent-Length: 100\r\n\r\n{"
        )
        assert http.get("/healthz").status_code == 200
        connection.settimeout(20)
        answer = connection.recv(65536)
    assert answer.startswith(b"HTTP/1.1 408") and b'"error"' in answer and b"took longer than 0.5 seconds" in answer


def test_one_slow_header_after_a_good_request_is_not_waited_for_either(http: httpx.Client) -> None:
    with raw(http) as connection:
        connection.sendall(b"GET /healthz HTTP/1.1\r\nHost: a\r\n\r\n")
        assert connection.recv(65536).startswith(b"HTTP/1.1 200")
        connection.sendall(b"GET /healthz HT")
        assert received(connection) == b""


def test_headers_without_end_are_refused(http: httpx.Client) -> None:
    with raw(http) as connection:
        try:
            for _ in range(40):
                connection.sendall(b"X-" + b"a" * 8000)
        except (BrokenPipeError, ConnectionResetError):
            return
        assert b"400" in received(connection)


@pytest.mark.parametrize("data", [b"\x16\x03\x01\x02\x00", b"GET", os.urandom(300)])
def test_what_is_no_http_is_sent_away(http: httpx.Client, data: bytes) -> None:
    with raw(http) as connection:
        connection.sendall(data + b"\r\n\r\n")
        assert received(connection)[:12] in (b"", b"HTTP/1.1 400")
    assert http.get("/healthz").status_code == 200


def test_a_reader_that_does_not_read_loses_its_connection(tiny_folder: Path) -> None:
    app = create_app(str(tiny_folder), send_timeout_s=0.3)
    with running(app) as http:
        file = max(http.get("/v1/model").json()["files"], key=lambda file: file["size_bytes"])
        with socket.socket() as connection:
            connection.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
            connection.connect((http.base_url.host, http.base_url.port))
            path = f"/v1/components/{file['sha256']}"
            connection.sendall(b"".join(f"GET {path} HTTP/1.1\r\nHost: a\r\n\r\n".encode() for _ in range(60)))
            lost = 'fedkd_requests_total{method="GET",route="/v1/components/{digest}",status="499"}'
            assert until(lambda: lost in http.get("/metrics").text)
            assert http.get("/healthz").status_code == 200


@pytest.mark.parametrize(
    ("path", "content"),
    [
        ("/v1/sessions", b'{"prompt": "' + b"a" * 4001 + b'"}'),
        ("/v1/sessions", b'{"prompt": "\\ud800"}'),
        ("/v1/sessions", b'{"prompt": "a", "model": "none"}'),
        ("/v1/sessions", b'{"prompt": "a", "scheduler": "\\u0000"}'),
        ("/v1/sessions", b'{"prompt": "a", "seed": 1e400}'),
        ("/v1/sessions", b'{"prompt": "a", "wire": "zip"}'),
        ("/v1/sessions", b'{"prompt": "a", "deadline_s": 0}'),
        ("/v1/images/generations", b'{"prompt": "a", "partial_images": 4, "stream": true}'),
        ("/v1/images/generations", b'{"prompt": "a", "model": "\\ud800"}'),
        ("/v1/images/generations", b"[" * 100_000),
    ],
)
def test_wrong_values_are_named(http: httpx.Client, path: str, content: bytes) -> None:
    answer = http.post(path, content=content, headers={"Content-Type": "application/json"})
    assert 400 <= answer.status_code < 500 and error_of(answer)["message"]
