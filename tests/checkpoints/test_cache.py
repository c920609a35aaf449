"""A node's cache: fetches what it lacks, refuses what is damaged, swaps in one step."""

from __future__ import annotations

from pathlib import Path

import pytest

from fedkd.checkpoints.cache import CheckpointCache
from fedkd.checkpoints.manifest import CheckpointError, Manifest
from fedkd.checkpoints.registry import Registry


def published(tmp_path: Path, weights: str) -> tuple[Manifest, Path]:
    folder = tmp_path / "model"
    (folder / "unet").mkdir(parents=True, exist_ok=True)
    (folder / "model_index.json").write_text("{}")
    (folder / "unet/w.safetensors").write_text(weights)
    registry = Registry(tmp_path / "registry")
    manifest = registry.publish(folder, name="m", parents=["m:v0"])
    return manifest, registry.resolve(manifest.reference)


def fetch(cache: CheckpointCache, manifest: Manifest, source: Path) -> list[str]:
    lacking = cache.missing(manifest)
    for entry in lacking:
        cache.put(entry.sha256, (source / entry.path).read_bytes())
    cache.activate(manifest)
    return [entry.path for entry in lacking]


def test_a_second_version_fetches_only_what_changed_and_the_first_stays(tmp_path: Path) -> None:
    cache = CheckpointCache(tmp_path / "cache")
    one, source = published(tmp_path, "one")
    assert fetch(cache, one, source) == ["model_index.json", "unet/w.safetensors"]
    before = cache.path()
    two, source = published(tmp_path, "two")
    assert fetch(cache, two, source) == ["unet/w.safetensors"]
    assert cache.digest == two.digest and (before / "unet/w.safetensors").read_text() == "one"
    three, source = published(tmp_path, "three")
    fetch(cache, three, source)
    assert not before.exists()


def test_a_damaged_blob_is_refused_and_the_old_version_stays(tmp_path: Path) -> None:
    cache = CheckpointCache(tmp_path / "cache")
    one, source = published(tmp_path, "one")
    fetch(cache, one, source)
    two, _ = published(tmp_path, "two")
    entry = cache.missing(two)[0]
    with pytest.raises(CheckpointError, match="damaged"):
        cache.put(entry.sha256, b"evil")
    with pytest.raises(CheckpointError, match="missing or damaged"):
        cache.activate(two)
    assert cache.digest == one.digest and cache.path().is_dir()


def test_a_blob_damaged_on_disk_is_fetched_again(tmp_path: Path) -> None:
    cache = CheckpointCache(tmp_path / "cache")
    one, source = published(tmp_path, "one")
    fetch(cache, one, source)
    digest = next(entry.sha256 for entry in one.files if entry.path.startswith("unet"))
    blob = cache.blobs.path(digest)
    blob.chmod(0o644)
    blob.write_text("two")
    with pytest.raises(CheckpointError):
        cache.path()
    assert digest not in cache.held()
    assert fetch_after_damage(cache, one, source) == "one"


def fetch_after_damage(cache: CheckpointCache, manifest: Manifest, source: Path) -> str:
    with pytest.raises(CheckpointError):
        cache.activate(manifest)
    fetch(cache, manifest, source)
    return (cache.path() / "unet/w.safetensors").read_text()


def test_an_empty_cache_says_so(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match="refreshed first"):
        CheckpointCache(tmp_path).path()
