"""A bounded cache: who goes when room is needed, and who stays."""

from __future__ import annotations

import os
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from fedkd.checkpoints.blobs import verify_folder
from fedkd.checkpoints.cache import CheckpointCache
from fedkd.checkpoints.manifest import CheckpointError, file_digest
from tests.checkpoints.folders import make_model
from tests.checkpoints.published import SIZE, Source, bounded, obtain, several


@pytest.fixture()
def source(tmp_path: Path) -> Source:
    return Source(tmp_path / "source")


@pytest.fixture()
def cache(tmp_path: Path) -> CheckpointCache:
    return CheckpointCache(tmp_path / "cache")


def test_the_model_used_longest_ago_goes_when_the_bound_is_reached(source: Source, cache: CheckpointCache) -> None:
    a, b, c = several(source, 3)
    small = bounded(cache, 2.3)
    obtain(small, source, a)
    obtain(small, source, b)
    obtain(small, source, a)
    obtain(small, source, c)
    assert set(small.shelf.held()) == {a.digest, c.digest}
    assert small.shelf.stored_bytes() <= small.max_bytes
    assert len(small.held()) == len(a.blobs | c.blobs)
    assert (small.counters.misses, small.counters.hits) == (3, 1)


def test_pinned_served_and_leased_models_stay(source: Source, cache: CheckpointCache) -> None:
    served, pinned, leased, other, new = several(source, 5)
    small = bounded(cache, 4.3)
    source.activate(small, served)
    obtain(small, source, pinned)
    obtain(small, source, leased)
    small.shelf.pin(pinned.digest)
    with small.shelf.lease(leased.digest):
        obtain(small, source, other)
        obtain(small, source, new)
        assert set(small.shelf.held()) == {served.digest, pinned.digest, leased.digest, new.digest}
    small.shelf.unpin(pinned.digest)
    obtain(small, source, other)
    assert pinned.digest not in small.shelf.held()


def test_a_model_that_finds_no_room_is_refused_before_anything_is_fetched(
    source: Source, cache: CheckpointCache
) -> None:
    a, b = several(source, 2)
    small = bounded(cache, 1.3)
    source.activate(small, a)
    sent = len(source.sent)
    with pytest.raises(CheckpointError, match=r"m1:v0 has \d+ bytes beside \d+ that are served.*serving\.cache_mb"):
        obtain(small, source, b)
    assert len(source.sent) == sent and small.path().name == a.digest
    with pytest.raises(CheckpointError, match=r"raise serving\.cache_mb"):
        obtain(bounded(cache, 0.5), source, b)


def test_a_swap_needs_only_room_for_what_changed(source: Source, cache: CheckpointCache) -> None:
    small = bounded(cache, 1.6)
    for text in ("one", "two", "three", "four"):
        manifest = source.publish(text, size_bytes=SIZE)
        source.activate(small, manifest)
        assert small.path().name == manifest.digest and small.shelf.stored_bytes() <= small.max_bytes


def test_a_leased_version_outlives_two_swaps(source: Source, cache: CheckpointCache) -> None:
    one = source.publish("one")
    source.activate(cache, one)
    with cache.lease() as folder:
        for text in ("two", "three"):
            source.activate(cache, source.publish(text))
        assert verify_folder(folder).digest == one.digest
    source.activate(cache, source.publish("four"))
    assert not folder.exists()


def test_requests_read_whole_versions_while_versions_are_swapped(source: Source, cache: CheckpointCache) -> None:
    versions = [source.publish(f"u{n}") for n in range(6)]
    source.activate(cache, versions[0])
    known = {m.digest: {e.path: e.sha256 for e in m.files} for m in versions}
    done: list[int] = []

    def read(_: int) -> None:
        reader = CheckpointCache(cache.root)
        while not done:
            with reader.lease() as folder:
                for path, sha256 in known[folder.name].items():
                    assert file_digest(folder / path) == sha256

    with ThreadPoolExecutor(3) as pool:
        readers = [pool.submit(read, n) for n in range(2)]
        try:
            for manifest in versions[1:]:
                source.activate(cache, manifest)
        finally:
            done.append(1)
        for reader in readers:
            reader.result()


def test_leftovers_of_a_killed_process_are_cleared_when_room_is_needed(source: Source, cache: CheckpointCache) -> None:
    a, b = several(source, 2)
    small = bounded(cache, 1.5)
    stale = small.shelf.flight(a.digest)
    stale.mkdir(parents=True)
    (stale / "x.part").write_bytes(bytes(2 * SIZE))
    make_model(small.root / "trash" / "old", size_bytes=SIZE)
    orphan = small.blobs.path("0" * 64)
    orphan.parent.mkdir(parents=True)
    orphan.write_bytes(bytes(2 * SIZE))
    obtain(small, source, b)
    assert not stale.exists() and not orphan.exists() and not (small.root / "trash").exists()


def test_what_nobody_came_back_for_goes_after_a_day(source: Source, cache: CheckpointCache) -> None:
    a, b = several(source, 2)
    left = [cache.shelf.flight(b.digest), cache.blobs.path("0" * 64)]
    left[0].mkdir(parents=True)
    left[1].parent.mkdir(parents=True)
    left[1].write_bytes(b"x")
    source.activate(cache, a)
    assert all(path.exists() for path in left)
    for path in left:
        os.utime(path, (0, 0))
    source.activate(cache, a)
    assert not any(path.exists() for path in left) and cache.path().name == a.digest


def test_an_evicted_model_says_so_and_comes_back(source: Source, cache: CheckpointCache) -> None:
    a, b = several(source, 2)
    source.activate(cache, a)
    source.activate(cache, b)
    obtain(bounded(cache, 1.3), source, b)
    cache.shelf.evict(a.digest)
    with pytest.raises(CheckpointError, match=r"no longer holds .* fetch it again"):
        cache.path("m0")
    obtain(cache, source, a)
    assert cache.path("m0").name == a.digest
