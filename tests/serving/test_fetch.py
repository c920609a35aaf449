"""A device fetches a model once, goes on where it stopped, and never trusts what it has not verified."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest

from fedkd.serving.connection import Connection
from fedkd.serving.fetch import FetchError, fetch_blob, fetch_component


@pytest.fixture
def http(edge_url: str) -> Iterator[httpx.Client]:
    """A plain HTTP client of the edge."""
    with httpx.Client(base_url=edge_url, trust_env=False, timeout=60) as client:
        yield client


@pytest.fixture
def weights(http: httpx.Client) -> dict[str, Any]:
    """The largest file of the denoiser."""
    files = [file for file in http.get("/v1/model").json()["files"] if file["component"] == "unet"]
    return max(files, key=lambda file: file["size_bytes"])


@pytest.fixture
def connection() -> Iterator[Connection]:
    """What carries out a fetch."""
    found = Connection()
    yield found
    found.close()


@pytest.fixture
def fetch(edge_url: str, connection: Connection) -> Any:
    """fetch(file, cache) -> the cached path, and the bytes fetched for it."""
    return lambda file, cache: connection.run(fetch_blob(edge_url, file["sha256"], file["size_bytes"], cache))


def test_an_interrupted_fetch_goes_on_where_it_stopped(fetch: Any, weights: dict[str, Any], tmp_path: Path) -> None:
    blob, fetched = fetch(weights, tmp_path / "whole")
    assert fetched == weights["size_bytes"]
    part = tmp_path / "blobs" / f"{weights['sha256']}.part"
    part.parent.mkdir()
    for have in (1000, weights["size_bytes"]):  # the second: all there, but for the rename
        part.write_bytes(blob.read_bytes()[:have])
        again, fetched = fetch(weights, tmp_path)
        assert fetched == weights["size_bytes"] - have
        assert again.read_bytes() == blob.read_bytes() and not part.exists()
        again.unlink()


def test_a_wrong_part_is_thrown_away(fetch: Any, weights: dict[str, Any], tmp_path: Path) -> None:
    part = tmp_path / "blobs" / f"{weights['sha256']}.part"
    part.parent.mkdir()
    part.write_bytes(b"x" * 1000)
    blob, fetched = fetch(weights, tmp_path)
    assert fetched == 2 * weights["size_bytes"] - 1000
    assert blob.stat().st_size == weights["size_bytes"] and not part.exists()


def test_a_cached_component_is_not_fetched_again(
    http: httpx.Client, edge_url: str, connection: Connection, tmp_path: Path
) -> None:
    model = http.get("/v1/model").json()
    folder, fetched = connection.run(fetch_component(edge_url, model, "unet", tmp_path))
    assert fetched > 0 and (folder / "config.json").is_file()
    assert connection.run(fetch_component(edge_url, model, "unet", tmp_path)) == (folder, 0)


def test_a_file_with_another_digest_is_refused(fetch: Any, tmp_path: Path) -> None:
    with pytest.raises(FetchError, match="404"):
        fetch({"sha256": "0" * 64, "size_bytes": 10}, tmp_path)
    assert not list((tmp_path / "blobs").glob("0*"))


@pytest.mark.parametrize("change", [{"name": "../../evil"}, {"name": "/etc/passwd"}, {"sha256": "../x"}])
def test_names_that_leave_the_cache_are_refused(
    http: httpx.Client, edge_url: str, connection: Connection, tmp_path: Path, change: dict[str, str]
) -> None:
    model = http.get("/v1/model").json()
    model["files"] = [file | change for file in model["files"] if file["component"] == "unet"]
    with pytest.raises(FetchError):
        connection.run(fetch_component(edge_url, model, "unet", tmp_path))
