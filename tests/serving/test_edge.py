"""The edge answers OpenAI's client, keeps strangers and garbage out, and stays up."""

from __future__ import annotations

import base64
import io
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import openai
import pytest
from fastapi.testclient import TestClient
from PIL import Image

from fedkd.serving.edge import create_app


@pytest.fixture(scope="module")
def http(edge_url: str) -> Iterator[httpx.Client]:
    """A plain HTTP client of the edge."""
    with httpx.Client(base_url=edge_url, trust_env=False, timeout=60) as client:
        yield client


def opened(http: Any, **changes: Any) -> Any:
    plan = {"prompt": "a red seven", "num_inference_steps": 4, "device_steps": 2, **changes}
    return http.post("/v1/sessions", json=plan)


def test_openais_client_gets_its_picture(edge_url: str, tiny_pipeline: Any) -> None:
    client = openai.OpenAI(base_url=f"{edge_url}/v1", api_key="none")
    answer = client.images.generate(prompt="a red seven", model="tiny", n=2, size="32x32", extra_body={"seed": 5})
    assert answer.data is not None and len(answer.data) == 2
    pictures = [Image.open(io.BytesIO(base64.b64decode(item.b64_json or ""))) for item in answer.data]
    assert pictures[0].size == (32, 32)
    import torch

    expected = tiny_pipeline(
        "a red seven", num_inference_steps=4, guidance_scale=2.0, generator=torch.Generator().manual_seed(5)
    ).images[0]
    assert pictures[0].tobytes() == expected.tobytes() != pictures[1].tobytes()


@pytest.mark.parametrize(
    ("changes", "status", "param"),
    [
        ({"size": "1024x1024"}, 400, "size"),
        ({"response_format": "url"}, 400, "response_format"),
        ({"model": "dall-e-3"}, 404, "model"),
        ({"prompt": ""}, 422, "prompt"),
        ({"n": 100}, 422, "n"),
        ({"scheduler": "Nothing"}, 422, "scheduler"),
        ({"num_inference_steps": "many"}, 422, "num_inference_steps"),
    ],
)
def test_wrong_requests_get_openais_errors(
    http: httpx.Client, changes: dict[str, Any], status: int, param: str
) -> None:
    answer = http.post("/v1/images/generations", json={"prompt": "a", **changes})
    assert answer.status_code == status
    error = answer.json()["error"]
    assert set(error) == {"message", "type", "param", "code"}
    assert error["param"] == param and error["type"] == "invalid_request_error"


def test_openais_client_raises_its_own_error(edge_url: str) -> None:
    client = openai.OpenAI(base_url=f"{edge_url}/v1", api_key="none")
    with pytest.raises(openai.NotFoundError, match="this edge serves 'tiny'"):
        client.images.generate(prompt="a", model="gpt-image-1")


@pytest.mark.parametrize(
    ("method", "path", "content"),
    [
        ("POST", "/v1/sessions", b"\x00\xff not json"),
        ("POST", "/v1/sessions", b"[" * 20_000),
        ("POST", "/v1/sessions", b'{"prompt": "a", "seed": -1}'),
        ("POST", "/v1/sessions", b'{"prompt": "a", "surprise": 1}'),
        ("POST", "/v1/sessions", b'{"prompt": "a", "guidance_scale": NaN}'),
        ("POST", "/v1/sessions/none/handoff", b"x"),
        ("POST", "/v1/images/generations", b"null"),
        ("GET", "/v1/components/nothing", b""),
        ("GET", "/v1/components/..%2F..%2Fetc%2Fpasswd", b""),
        ("GET", "/nowhere", b""),
        ("DELETE", "/v1/sessions/none", b""),
        ("PATCH", "/v1/model", b""),
    ],
)
def test_garbage_is_a_4xx_in_openais_form(http: httpx.Client, method: str, path: str, content: bytes) -> None:
    answer = http.request(method, path, content=content, headers={"Content-Type": "application/json"})
    assert 400 <= answer.status_code < 500
    assert set(answer.json()["error"]) == {"message", "type", "param", "code"}
    assert http.get("/healthz").json() == {"status": "ok"}


def test_a_garbled_handoff_is_refused_and_the_session_can_still_end_well(http: httpx.Client) -> None:
    session = opened(http)
    path = f"{session.headers['Location']}/handoff"
    for data in (b"", b"garbage", session.content[:-1], session.content):  # the last one stands at step 0
        answer = http.post(path, content=data)
        assert answer.status_code == 400 and answer.json()["error"]["code"] == "hand_off_refused"
    from dataclasses import replace

    from fedkd.inference.handoff import HandOff

    found = replace(HandOff.from_bytes(session.content), step=2)
    for changed in ({"guidance_scale": 3.0}, {"model": "other"}, {"scheduler": "EulerDiscreteScheduler"}):
        assert http.post(path, content=replace(found, **changed).to_bytes()).status_code == 400
    good = http.post(path, content=found.to_bytes())
    assert good.status_code == 200 and good.headers["content-type"] == "image/png"
    assert http.post(path, content=found.to_bytes()).status_code == 404


def test_ranges_of_components_are_served_by_digest(http: httpx.Client) -> None:
    file = max(http.get("/v1/model").json()["files"], key=lambda file: file["size_bytes"])
    path = f"/v1/components/{file['sha256']}"
    whole = http.get(path)
    assert whole.headers["etag"] == f'"{file["sha256"]}"' and len(whole.content) == file["size_bytes"]
    part = http.get(path, headers={"Range": "bytes=10-19", "If-Range": whole.headers["etag"]})
    assert part.status_code == 206 and part.content == whole.content[10:20]
    assert http.get(path, headers={"Range": "bytes=10-19", "If-Range": '"other"'}).status_code == 200


@pytest.fixture
def guarded(tiny_folder: Path) -> Iterator[TestClient]:
    """An edge with a token, room for two sessions and small bodies."""
    app = create_app(str(tiny_folder), token="secret", max_sessions=2, session_lifetime_s=0.5, max_body_bytes=50_000)
    with TestClient(app, raise_server_exceptions=False) as client:
        yield client


def test_a_token_is_asked_for_everywhere_but_at_healthz(guarded: TestClient) -> None:
    assert guarded.get("/healthz").status_code == 200
    for headers in ({}, {"Authorization": "Bearer wrong"}, {"Authorization": "Bearer secret2"}):
        answer = guarded.get("/v1/model", headers=headers)
        assert answer.status_code == 401 and answer.json()["error"]["code"] == "invalid_api_key"
    assert guarded.get("/v1/model", headers={"Authorization": "Bearer secret"}).status_code == 200


def test_sessions_are_bounded_and_expire_and_large_bodies_are_refused(guarded: TestClient) -> None:
    import time

    guarded.headers["Authorization"] = "Bearer secret"
    first = opened(guarded)
    assert first.status_code == 201 and opened(guarded).status_code == 201
    full = opened(guarded)
    assert full.status_code == 429 and full.headers["Retry-After"]
    time.sleep(0.6)
    assert opened(guarded).status_code == 201
    assert guarded.post(f"{first.headers['Location']}/handoff", content=b"x").status_code == 404
    large = b"x" * 60_000
    assert guarded.post("/v1/sessions", content=large).status_code == 413
    chunked = guarded.post("/v1/sessions/any/handoff", content=iter([large[:30_000], large[:30_000]]))
    assert chunked.status_code in (404, 413)
    chunked = guarded.post("/v1/images/generations", content=iter([large[:30_000], large[:30_000]]))
    assert chunked.status_code == 413 and "error" in chunked.json()
