"""A cache over restarts, broken transfers and full disks."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from safetensors.numpy import load_file

from fedkd.checkpoints.cache import CheckpointCache
from fedkd.checkpoints.manifest import CheckpointError, FileEntry
from tests.checkpoints.published import SIZE, Source, bounded, obtain, several

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture()
def source(tmp_path: Path) -> Source:
    return Source(tmp_path / "source")


@pytest.fixture()
def cache(tmp_path: Path) -> CheckpointCache:
    return CheckpointCache(tmp_path / "cache")


def test_a_restarted_node_serves_on_and_keeps_counters_pins_and_order(source: Source, cache: CheckpointCache) -> None:
    a, b, c = several(source, 3)
    for manifest in (a, b):
        obtain(cache, source, manifest)
    cache.shelf.pin(a.digest)
    source.activate(cache, b)
    counters = cache.counters
    again = bounded(cache, 2.3)
    assert again.path().name == b.digest and again.shelf.pinned() == {a.digest}
    assert again.counters.misses == counters.misses == 2
    with pytest.raises(CheckpointError, match=r"m2:v0 has .* raise serving\.cache_mb"):
        obtain(again, source, c)


def test_a_transfer_that_breaks_off_is_gone_on_with(source: Source, cache: CheckpointCache) -> None:
    one = source.publish("one", size_bytes=SIZE)
    begun: list[int] = []

    def breaking(entry: FileEntry, part: Path) -> None:
        if entry.path.startswith("unet"):
            part.write_bytes(source.registry.blobs.path(entry.sha256).read_bytes()[: SIZE // 2])
            raise ConnectionError("the remote is gone")
        source.fetch(entry, part)

    def resuming(entry: FileEntry, part: Path) -> None:
        begun.append(part.stat().st_size if part.exists() else 0)
        source.fetch(entry, part)

    with pytest.raises(ConnectionError):
        cache.activate(one, fetch=breaking)
    assert cache.digest == "" and cache.shelf.held() == []
    cache.activate(one, text=source.text(one), fetch=resuming)
    assert SIZE // 2 in begun and cache.path().is_dir()


SMALL_DISK = """
import resource, sys
from pathlib import Path
from tests.checkpoints.published import Source
from fedkd.checkpoints.cache import CheckpointCache
from fedkd.checkpoints.manifest import CheckpointError
cache, source = CheckpointCache(Path(sys.argv[1])), Source(Path(sys.argv[2]))
limit = int(sys.argv[3])
if limit:
    resource.setrlimit(resource.RLIMIT_FSIZE, (limit, limit))
served = cache.path().name
try:
    source.activate(cache, source.registry.manifest(sys.argv[4]))
except CheckpointError as error:
    print("refused:", error)
assert cache.path().name == served == cache.digest
"""


def on_a_small_disk(cache: CheckpointCache, source: Source, reference: str, limit: int) -> str:
    command = [sys.executable, "-c", SMALL_DISK, str(cache.root), str(source.root), str(limit), reference]
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    done = subprocess.run(command, capture_output=True, text=True, env=environment, timeout=120)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


@pytest.mark.parametrize("limit", [1, 30, 500, 50_000])
def test_a_full_disk_refuses_the_new_version_and_serves_the_old_one(
    limit: int, source: Source, cache: CheckpointCache
) -> None:
    one, two = source.publish("one", size_bytes=SIZE), source.publish("two", size_bytes=SIZE)
    source.activate(cache, one)
    assert "refused: the disk of" in on_a_small_disk(cache, source, two.reference, limit)
    assert not list(cache.root.rglob("*.part")) and not list((cache.root / "flights").glob("*"))
    source.activate(cache, two)
    assert cache.path().name == two.digest


def mounted(folder: Path, size_bytes: int) -> bool:
    folder.mkdir()
    command = ["mount", "-t", "tmpfs", "-o", f"size={size_bytes}", "tmpfs", str(folder)]
    return shutil.which("mount") is not None and subprocess.run(command, capture_output=True).returncode == 0


def test_on_a_full_file_system_other_models_make_room_and_the_served_one_stays(source: Source, tmp_path: Path) -> None:
    disk = tmp_path / "disk"
    if not mounted(disk, 600_000):
        pytest.skip("mounting a small tmpfs needs root")
    try:
        cache = CheckpointCache(disk / "cache")
        served, other, new = several(source, 3)
        source.activate(cache, served)
        obtain(cache, source, other)
        obtain(cache, source, new)
        assert set(cache.shelf.held()) == {served.digest, new.digest}
        huge = source.publish("huge", name="huge", vae="vast", size_bytes=4 * SIZE)
        with pytest.raises(CheckpointError, match=r"the disk of .* is full.*nothing changed"):
            source.activate(cache, huge)
        assert cache.path().name == served.digest and cache.shelf.held() == [served.digest]
        assert load_file(cache.path() / "unet/w.safetensors")["w"].size == SIZE
    finally:
        subprocess.run(["umount", str(disk)], check=True)
