"""A node's cache: fetches what it lacks, once; refuses what is damaged; swaps in one step."""

from __future__ import annotations

import multiprocessing
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from fedkd.checkpoints.blobs import verify_folder
from fedkd.checkpoints.cache import CheckpointCache
from fedkd.checkpoints.manifest import CheckpointError, FileEntry, Manifest, file_digest
from tests.checkpoints.published import Source


@pytest.fixture()
def source(tmp_path: Path) -> Source:
    return Source(tmp_path / "source")


@pytest.fixture()
def cache(tmp_path: Path) -> CheckpointCache:
    return CheckpointCache(tmp_path / "cache")


def damage(cache: CheckpointCache, manifest: Manifest, path: str = "unet/w.safetensors") -> FileEntry:
    """Flip one bit of a blob on the disk."""
    entry = next(entry for entry in manifest.files if entry.path == path)
    blob = cache.blobs.path(entry.sha256)
    data = bytearray(blob.read_bytes())
    data[-1] ^= 1
    blob.chmod(0o644)
    blob.write_bytes(data)
    return entry


def test_a_second_version_fetches_only_what_changed_and_the_first_stays(source: Source, cache: CheckpointCache) -> None:
    one = source.publish("one")
    before = source.activate(cache, one)
    assert len(source.sent) == 3
    two = source.publish("two")
    source.activate(cache, two)
    assert source.sent[3:] == [entry.sha256 for entry in two.files if entry.path.startswith("unet")]
    assert cache.digest == two.digest and verify_folder(before).digest == one.digest
    source.activate(cache, source.publish("three"))
    assert not before.exists() and len(cache.held()) == 4


def test_blobs_can_be_put_one_by_one_and_activated(source: Source, cache: CheckpointCache) -> None:
    one = source.publish("one")
    for entry in cache.missing(one):
        cache.put(entry.sha256, source.registry.blobs.path(entry.sha256).read_bytes())
    with pytest.raises(CheckpointError, match="damaged"):
        cache.put("0" * 64, b"evil")
    assert cache.activate(one) == cache.path()
    assert cache.counters.bytes_fetched == one.size_bytes and cache.counters.bytes_saved == 0


def test_an_incomplete_version_is_refused_and_the_old_one_stays(source: Source, cache: CheckpointCache) -> None:
    one, two = source.publish("one"), source.publish("two")
    source.activate(cache, one)
    with pytest.raises(CheckpointError, match="missing or damaged"):
        cache.activate(two)
    assert cache.digest == one.digest and cache.path().is_dir()


def test_blobs_that_change_on_their_way_are_refused(source: Source, cache: CheckpointCache) -> None:
    one, two = source.publish("one"), source.publish("two")
    source.activate(cache, one)
    for data in (b"evil", bytes(two.files[1].size)):
        with pytest.raises(CheckpointError, match="damaged on its way"):
            cache.activate(two, fetch=lambda entry, part, data=data: part.write_bytes(data))
    assert cache.digest == one.digest and cache.path().is_dir()
    source.activate(cache, two)
    assert cache.digest == two.digest


def test_a_blob_damaged_on_the_disk_is_fetched_again_on_load(source: Source, cache: CheckpointCache) -> None:
    one = source.publish("one")
    source.activate(cache, one)
    entry = damage(cache, one)
    with pytest.raises(CheckpointError, match=r"unet/w\.safetensors.*changed"):
        cache.path()
    assert cache.sound_digest() == ""
    mending = CheckpointCache(cache.root, fetch=source.fetch)
    folder = mending.path()
    assert source.sent[3:] == [entry.sha256]
    assert file_digest(folder / entry.path) == entry.sha256 == file_digest(cache.blobs.path(entry.sha256))
    assert cache.sound_digest() == one.digest


def test_a_damaged_model_is_whole_again_after_a_refresh(source: Source, cache: CheckpointCache) -> None:
    one = source.publish("one")
    source.activate(cache, one)
    entry = damage(cache, one)
    assert entry.sha256 not in cache.held()
    (cache.shelf.folder(one.digest) / "stray.json").write_text("{}")
    source.activate(cache, one)
    assert file_digest(cache.path() / entry.path) == entry.sha256


def test_many_models_lie_side_by_side_and_share_blobs(source: Source, cache: CheckpointCache) -> None:
    a, b = source.publish("one", name="a"), source.publish("two", name="b")
    source.activate(cache, a)
    source.activate(cache, b)
    assert cache.path("a").name == a.digest and cache.path("b") == cache.path()
    shared = a.size_bytes + b.size_bytes - sum((a.blobs | b.blobs).values())
    assert cache.counters.bytes_saved == shared > 0
    assert cache.counters.bytes_fetched == a.size_bytes + b.size_bytes - shared


def test_thirty_two_requests_at_once_cause_one_transfer(source: Source, cache: CheckpointCache) -> None:
    one = source.publish("one")
    source.delay_s = 0.2

    def ask(_: int) -> Path:
        return CheckpointCache(cache.root, fetch=source.fetch).obtain(one, text=source.text(one))

    with ThreadPoolExecutor(32) as pool:
        folders = set(pool.map(ask, range(32)))
    assert len(folders) == 1 and verify_folder(folders.pop()).digest == one.digest
    assert sorted(source.sent) == sorted(one.blobs)
    counters = cache.counters
    assert (counters.misses, counters.hits, counters.bytes_fetched) == (1, 31, one.size_bytes)


def ask_in_a_process(root: Path, origin: Path, log: Path) -> None:
    source = Source(origin)
    manifest = source.registry.manifest("m")

    def fetch(entry: FileEntry, part: Path) -> None:
        with log.open("a") as stream:
            stream.write(f"{entry.sha256}\n")
        source.delay_s = 0.2
        source.fetch(entry, part)

    CheckpointCache(root, fetch=fetch).obtain(manifest, text=source.text(manifest))


def test_processes_that_ask_at_once_cause_one_transfer(source: Source, cache: CheckpointCache, tmp_path: Path) -> None:
    one, log = source.publish("one"), tmp_path / "log"
    spawn = multiprocessing.get_context("fork")
    asking = [spawn.Process(target=ask_in_a_process, args=(cache.root, source.root, log)) for _ in range(4)]
    for process in asking:
        process.start()
    for process in asking:
        process.join()
    assert [process.exitcode for process in asking] == [0] * 4
    assert sorted(log.read_text().split()) == sorted(one.blobs)


def test_two_models_are_fetched_side_by_side(source: Source, cache: CheckpointCache) -> None:
    made = [source.publish("one", name="a"), source.publish("two", name="b", vae="other")]
    source.delay_s = 0.1
    with ThreadPoolExecutor(2) as pool:
        list(pool.map(lambda m: cache.obtain(m, text=source.text(m), fetch=source.fetch), made))
    assert all(verify_folder(cache.shelf.folder(manifest.digest)) for manifest in made)


def test_an_empty_cache_says_so(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match="refreshed first"):
        CheckpointCache(tmp_path).path()
