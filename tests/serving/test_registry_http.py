"""The registry over HTTP: read-only, ranges, ETag = digest, a token, and nothing outside the registry."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
from fastapi.testclient import TestClient

from fedkd.checkpoints.registry import Registry
from fedkd.serving.registry_http import create_registry_app
from tests.checkpoints.folders import make_model

BASE = "/v1/registry"


@pytest.fixture()
def registry(tmp_path: Path) -> Registry:
    registry = Registry(tmp_path / "registry")
    registry.publish(make_model(tmp_path / "model"), name="m")
    return registry


@pytest.fixture()
def client(registry: Registry) -> Iterator[TestClient]:
    with TestClient(create_registry_app(registry.root)) as client:
        yield client


def blob_url(registry: Registry) -> tuple[str, bytes, str]:
    entry = next(each for each in registry.manifest("m").files if each.path == "unet/w.safetensors")
    return (
        f"{BASE}/blobs/sha256/{entry.sha256[:2]}/{entry.sha256}",
        registry.blobs.path(entry.sha256).read_bytes(),
        entry.sha256,
    )


def test_a_blob_comes_whole_with_its_digest_as_etag(client: TestClient, registry: Registry) -> None:
    url, data, digest = blob_url(registry)
    answer = client.get(url)
    assert answer.content == data and answer.headers["etag"] == f'"{digest}"'
    assert "immutable" in answer.headers["cache-control"]
    head = client.head(url)
    assert head.status_code == 200 and head.headers["content-length"] == str(len(data)) and head.content == b""


def test_a_blob_comes_in_ranges(client: TestClient, registry: Registry) -> None:
    url, data, digest = blob_url(registry)
    part = client.get(url, headers={"Range": "bytes=100-", "If-Range": f'"{digest}"'})
    assert part.status_code == 206 and part.content == data[100:]
    assert part.headers["content-range"] == f"bytes 100-{len(data) - 1}/{len(data)}"
    assert client.get(url, headers={"Range": "bytes=100-", "If-Range": '"other"'}).content == data
    assert client.get(url, headers={"Range": f"bytes={len(data)}-"}).status_code == 416


def test_what_the_asker_holds_is_not_sent_again(client: TestClient, registry: Registry) -> None:
    url, _, digest = blob_url(registry)
    for path in (url, f"{BASE}/versions/m/v0/manifest.json"):
        tag = client.get(path).headers["etag"]
        same = client.get(path, headers={"If-None-Match": tag})
        assert same.status_code == 304 and same.content == b"" and same.headers["etag"] == tag
    assert tag != f'"{digest}"'


def test_manifests_names_and_listings_are_there(client: TestClient, registry: Registry) -> None:
    manifest = client.get(f"{BASE}/versions/m/v0/manifest.json")
    assert manifest.content == (registry.folder("m") / "manifest.json").read_bytes()
    assert client.get(f"{BASE}/names/m/latest").text == "v0"
    assert client.get(f"{BASE}/versions").json() == {"entries": ["m"]}
    assert client.get(f"{BASE}/versions/m").json() == {"entries": ["v0"]}
    assert client.get(f"{BASE}/versions/n").json() == {"entries": []}
    assert client.get(f"{BASE}/versions/m/v0/model.sig").status_code == 404


@pytest.mark.parametrize(
    "path",
    [
        "../secret",
        "%2e%2e/secret",
        "versions/m/../../../secret",
        "versions/m/v0/unet/w.safetensors",
        "names/../../secret",
        "names/m/secret",
        "locks/gate",
        "tmp",
        "blobs/sha256",
        "blobs/sha256/aa/" + "b" * 64,
        "",
    ],
)
def test_nothing_but_the_registrys_own_paths_is_served(path: str, client: TestClient, registry: Registry) -> None:
    (registry.root.parent / "secret").write_text("secret")
    (registry.root / "names" / "m" / "secret").symlink_to(registry.root.parent / "secret")
    answer = client.get(f"{BASE}/{path}")
    assert answer.status_code == 404 and "secret" not in answer.text.replace(path, "")


@pytest.mark.parametrize("method", ["POST", "PUT", "DELETE", "PATCH"])
def test_it_is_read_only(method: str, client: TestClient, registry: Registry) -> None:
    before = sorted(registry.root.rglob("*"))
    assert client.request(method, f"{BASE}/names/m/latest").status_code == 405
    assert client.request(method, f"{BASE}/names/m/latest", content=b"v9").status_code in (405, 413)
    assert sorted(registry.root.rglob("*")) == before


def test_a_token_is_asked_for(registry: Registry) -> None:
    with TestClient(create_registry_app(registry.root, token="secret")) as client:
        assert client.get("/healthz").status_code == 200
        for headers in ({}, {"Authorization": "Bearer wrong"}):
            answer = client.get(f"{BASE}/versions", headers=headers)
            assert answer.status_code == 401 and answer.headers["www-authenticate"] == "Bearer"
        assert client.get(f"{BASE}/versions", headers={"Authorization": "Bearer secret"}).status_code == 200
