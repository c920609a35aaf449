"""Push and pull: only missing blobs move, broken transfers are gone on with, nothing wrong gets a name."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from fedkd.checkpoints.cache import CheckpointCache
from fedkd.checkpoints.fetching import fetcher
from fedkd.checkpoints.manifest import CheckpointError
from fedkd.checkpoints.registry import Registry
from fedkd.checkpoints.signing import TrustPolicy, generate_keys, sign
from fedkd.checkpoints.transfer import Moved, pull, push
from tests.checkpoints.folders import make_model, write_weights
from tests.checkpoints.web import Broken, registry_at

ROOT = Path(__file__).resolve().parents[2]
LORA = "pytorch_lora_weights.safetensors"
MODEL_BYTES, LORA_BYTES = 2_000_000, 20_000


@pytest.fixture()
def registry(tmp_path: Path) -> Registry:
    """m:v0, and m:v1 that differs in its LoRA file alone."""
    registry, model = Registry(tmp_path / "here"), make_model(tmp_path / "model", size_bytes=MODEL_BYTES)
    write_weights(model / LORA, "first", LORA_BYTES)
    registry.publish(model, name="m", licence="mit", metrics={"known": 0.5})
    write_weights(model / LORA, "second", LORA_BYTES)
    registry.publish(model, name="m", parents=["m:v0"], round=1)
    return registry


def show(where: str, first: Moved, second: Moved) -> float:
    """Print what two transfers moved; the second's share of the first."""
    share = second.bytes_moved / first.bytes_moved
    print(
        f"\n{where}: first version {first.bytes_moved} bytes, second {second.bytes_moved} bytes "
        f"({100 * share:.2f}%), {second.bytes_saved} saved"
    )
    return share


def contents(folder: Path) -> dict[str, bytes]:
    return {p.relative_to(folder).as_posix(): p.read_bytes() for p in folder.rglob("*") if p.is_file()}


@pytest.mark.parametrize("place", ["file", "memory", "s3"])
def test_a_second_version_moves_only_what_changed_there_and_back(
    place: str, registry: Registry, tmp_path: Path, request: pytest.FixtureRequest
) -> None:
    url = {"file": (tmp_path / "there").as_uri(), "memory": f"memory://{tmp_path.name}"}.get(place)
    url = url or request.getfixturevalue("s3")
    first, second = push(registry, "m:v0", url), push(registry, "m:v1", url)
    assert show(f"push {place}", first, second) < 0.03
    assert second.blobs == 1 and second.bytes_saved > 2 * MODEL_BYTES
    target = Registry(tmp_path / "other")
    assert show(f"pull {place}", pull("m:v0", url, target), pull("m", url, target)) < 0.03
    for reference in ("m:v0", "m:v1"):
        assert contents(target.resolve(reference)) == contents(registry.resolve(reference))
    assert target.alias("m", "latest") == "v1" and push(registry, "m", url).bytes_moved == 0


def test_a_second_version_moves_only_what_changed_over_http(registry: Registry, tmp_path: Path) -> None:
    target = Registry(tmp_path / "other")
    with registry_at(registry.root, token="secret") as (url, counted):
        first, second = (pull(reference, url, target, token="secret") for reference in ("m:v0", "m"))
        assert show("pull http", first, second) < 0.03
        assert len(counted.blobs) == 5
        assert contents(target.resolve("m")) == contents(registry.resolve("m"))
        with pytest.raises(CheckpointError, match="refuses the token"):
            pull("m", url, Registry(tmp_path / "third"), token="wrong")


def test_a_folder_that_was_pushed_to_is_a_registry_whose_versions_open(registry: Registry, tmp_path: Path) -> None:
    push(registry, "m", str(tmp_path / "there"))
    assert (Registry(tmp_path / "there").resolve("m") / "model_index.json").is_file()


def test_progress_ends_at_the_bytes_that_lacked(registry: Registry, tmp_path: Path) -> None:
    seen: list[tuple[int, int]] = []
    with registry_at(registry.root) as (url, _):
        moved = pull("m", url, Registry(tmp_path / "other"), progress=lambda done, total: seen.append((done, total)))
    assert seen[0][0] == 0 and seen[-1][0] == seen[-1][1] == moved.bytes_moved - manifest_bytes(registry, "m")


def manifest_bytes(registry: Registry, reference: str) -> int:
    return (registry.folder(reference) / "manifest.json").stat().st_size


@pytest.mark.parametrize("kind", ["file", "http"])
def test_what_is_unknown_is_answered_with_what_there_is(kind: str, registry: Registry, tmp_path: Path) -> None:
    target = Registry(tmp_path / "other")
    with registry_at(registry.root) as (served, _):
        url = served if kind == "http" else str(registry.root)
        with pytest.raises(CheckpointError, match=r"no checkpoint 'm:v7' at .*known versions: v0, v1"):
            pull("m:v7", url, target)
        with pytest.raises(CheckpointError, match=r"no latest version of 'n' at .*known names: m"):
            pull("n", url, target)


def test_two_publishers_of_one_version_and_the_second_is_refused(registry: Registry, tmp_path: Path) -> None:
    other, there = Registry(tmp_path / "other"), f"memory://{tmp_path.name}"
    other.publish(make_model(tmp_path / "model2", unet="theirs"), name="m")
    for url in (str(tmp_path / "there"), there):
        push(registry, "m:v0", url)
        with pytest.raises(CheckpointError, match="already has another m:v0"):
            push(other, "m:v0", url)
        with pytest.raises(CheckpointError, match="already has another m:v0"):
            pull("m:v0", url, other)
    assert other.manifest("m:v0") != registry.manifest("m:v0")


def test_a_signature_that_came_later_is_sent_later(registry: Registry, tmp_path: Path) -> None:
    private, _ = generate_keys(tmp_path / "keys")
    for url in (str(tmp_path / "there"), f"memory://{tmp_path.name}"):
        push(registry, "m", url)
    sign(registry.folder("m"), private)
    for url in (str(tmp_path / "there"), f"memory://{tmp_path.name}"):
        push(registry, "m", url)
        pull("m", url, Registry(tmp_path / "other"))
        assert Registry(tmp_path / "other").signature("m") == registry.signature("m") != b""


def test_http_is_read_only_and_a_strange_place_is_named(registry: Registry) -> None:
    with registry_at(registry.root) as (url, _), pytest.raises(CheckpointError, match="is read-only; publish to"):
        push(registry, "m", url)
    for url, match in (("gopher://x/y", "is no place"), ("s3x:bucket", "is no place"), ("hf:nobody", "hf:OWNER/NAME")):
        with pytest.raises(CheckpointError, match=match):
            push(registry, "m", url)


def test_a_transfer_that_breaks_is_gone_on_with(registry: Registry, tmp_path: Path) -> None:
    target = Registry(tmp_path / "other")
    broken = Broken(registry.root, cut=3_100_000)
    with broken.running() as url:
        with pytest.raises(CheckpointError, match="went away in mid-transfer") as error:
            pull("m", url, target, jobs=1)
        assert "\n" not in str(error.value)
        assert target.versions("m") == []
        broken.cut = -1
        moved = pull("m", url, target, jobs=1)
    assert any(wanted.startswith("bytes=1") for wanted in broken.ranges)
    assert moved.bytes_saved > 2_000_000
    assert contents(target.resolve("m")) == contents(registry.resolve("m"))


def test_a_server_that_is_not_there_is_one_line(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match=r"127\.0\.0\.1:9.* cannot be reached"):
        pull("m", "http://127.0.0.1:9", Registry(tmp_path))


def test_a_web_page_is_no_registry(tmp_path: Path) -> None:
    for place in ("names/m/latest", "versions/m/v0/manifest.json"):
        page = tmp_path / "site" / place
        page.parent.mkdir(parents=True)
        page.write_text("<html>\n" * 1000)
    target = Registry(tmp_path / "mine")
    with Broken(tmp_path / "site").running() as url:
        for wanted, told in (("m", "names no version for latest of 'm'; is it a registry"), ("m:v0", "malformed")):
            with pytest.raises(CheckpointError, match=told) as error:
                pull(wanted, url, target)
            assert len(str(error.value)) < 200 and "\n" not in str(error.value)
    assert target.names() == []


@pytest.mark.parametrize("fault", ["altered", "longer"])
def test_a_blob_that_is_not_what_it_should_be_gets_no_name(fault: str, registry: Registry, tmp_path: Path) -> None:
    target = Registry(tmp_path / "other")
    broken = Broken(registry.root, alter=fault == "altered", extra=1000 * (fault == "longer"))
    match = "does not have the sha256" if fault == "altered" else "sends more than the|cannot be reached"
    with broken.running() as url, pytest.raises(CheckpointError, match=match):
        pull("m", url, target)
    assert target.versions("m") == [] and target.blobs.digests() == []


def test_a_damaged_blob_here_is_fetched_again(registry: Registry, tmp_path: Path) -> None:
    target = Registry(tmp_path / "other")
    with registry_at(registry.root) as (url, _):
        pull("m", url, target)
        victim = target.folder("m") / "unet/w.safetensors"
        victim.chmod(0o644)
        victim.write_bytes(b"x" + victim.read_bytes()[1:])
        with pytest.raises(CheckpointError, match="was changed"):
            target.resolve("m")
        assert pull("m", url, target).blobs == 1
    target.resolve("m")


def test_only_a_trusted_signature_gets_a_name(registry: Registry, tmp_path: Path) -> None:
    (private, public), (_, stranger) = generate_keys(tmp_path / "a"), generate_keys(tmp_path / "b")
    trusting = TrustPolicy(require_signature=True, public_keys=[public])
    with registry_at(registry.root) as (url, _):
        with pytest.raises(CheckpointError, match="not signed"):
            pull("m", url, Registry(tmp_path / "other"), policy=trusting)
        sign(registry.folder("m:v1"), private)
        with pytest.raises(CheckpointError, match="not trusted"):
            pull("m", url, Registry(tmp_path / "other"), policy=TrustPolicy(True, [stranger]))
        assert Registry(tmp_path / "other").versions("m") == []
        pull("m", url, Registry(tmp_path / "other"), policy=trusting)
    assert Registry(tmp_path / "other").signature("m") == registry.signature("m") != b""


def test_a_pickle_under_a_safetensors_name_gets_no_name(registry: Registry, tmp_path: Path) -> None:
    import pickle

    from fedkd.checkpoints.manifest import scan_folder

    folder = registry.folder("m:v1")
    (folder / "unet/w.safetensors").unlink()
    (folder / "unet/w.safetensors").write_bytes(pickle.dumps({"w": list(range(1000))}))
    from dataclasses import replace

    entries = tuple(entry for entry in scan_folder(folder) if entry.path != "model.sig")
    manifest = replace(registry.manifest("m:v1"), files=entries)
    (folder / "manifest.json").write_text(manifest.to_json())
    for entry in entries:
        registry.blobs.put_file(folder / entry.path, entry)
    target = Registry(tmp_path / "other")
    with registry_at(registry.root) as (url, _), pytest.raises(CheckpointError, match="safetensors"):
        pull("m", url, target)
    assert target.versions("m") == []


def test_many_pulls_of_one_model_fetch_each_blob_once(registry: Registry, tmp_path: Path) -> None:
    with registry_at(registry.root) as (url, counted), ThreadPoolExecutor(8) as pool:
        target = Registry(tmp_path / "other")
        moved = list(pool.map(lambda _: pull("m", url, target), range(8)))
    assert len(counted.blobs) == len(registry.manifest("m").blobs) == sum(each.blobs for each in moved)


def test_32_pulls_into_one_cache_cause_one_transfer(registry: Registry, tmp_path: Path) -> None:
    with registry_at(registry.root) as (url, counted), ThreadPoolExecutor(32) as pool:
        cache = CheckpointCache(tmp_path / "cache")
        moved = list(pool.map(lambda _: pull("m", url, cache), range(32)))
    assert len(counted.blobs) == len(registry.manifest("m").blobs) == sum(each.blobs for each in moved)
    assert cache.digest == registry.manifest("m").digest


def test_a_damaged_blob_of_a_cache_is_fetched_again_on_use(registry: Registry, tmp_path: Path) -> None:
    with registry_at(registry.root) as (url, counted):
        cache = CheckpointCache(tmp_path / "cache", fetch=fetcher(url))
        pull("m", url, cache)
        before = len(counted.blobs)
        victim = cache.path() / "unet/w.safetensors"
        victim.chmod(0o644)
        victim.write_bytes(b"x" + victim.read_bytes()[1:])
        assert (cache.path() / "unet/w.safetensors").read_bytes() == (
            registry.folder("m") / "unet/w.safetensors"
        ).read_bytes()
        assert len(counted.blobs) == before + 1


CHILD = """
import resource, sys
from pathlib import Path
from fedkd.checkpoints.manifest import CheckpointError
from fedkd.checkpoints.registry import Registry
from fedkd.checkpoints.transfer import pull
url, root, limit = sys.argv[1:]
if int(limit):
    resource.setrlimit(resource.RLIMIT_FSIZE, (int(limit), int(limit)))
try:
    pull("m", url, Registry(Path(root)), jobs=2)
except CheckpointError as error:
    sys.exit(f"error: {error}")
"""


def child(url: str, root: Path, limit: int = 0) -> subprocess.Popen[str]:
    """A process of its own that pulls m; `limit`: bytes that its disk takes of a file, 0 for any."""
    return subprocess.Popen(
        [sys.executable, "-c", CHILD, url, str(root), str(limit)],
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        stderr=subprocess.PIPE,
        text=True,
    )


def test_a_pull_that_is_killed_leaves_nothing_under_a_name_and_is_gone_on_with(
    registry: Registry, tmp_path: Path
) -> None:
    target, slow = Registry(tmp_path / "other"), Broken(registry.root, pause_s=0.02)
    with slow.running() as url:
        process = child(url, target.root)
        while slow.sent < 2_600_000:
            time.sleep(0.01)
        process.send_signal(signal.SIGKILL)
        process.wait()
        assert process.stderr is not None
        process.stderr.close()
        assert target.versions("m") == []
        slow.pause_s = 0
        moved = pull("m", url, target)
    assert moved.bytes_saved > 1_000_000 and any(wanted for wanted in slow.ranges)
    assert contents(target.resolve("m")) == contents(registry.resolve("m"))


def test_a_full_disk_is_one_line_and_leaves_nothing_under_a_name(registry: Registry, tmp_path: Path) -> None:
    target = Registry(tmp_path / "other")
    with registry_at(registry.root) as (url, _):
        process = child(url, target.root, limit=1_000_000)
        _, said = process.communicate(timeout=60)
        assert process.returncode == 1 and said.startswith("error: the disk of") and said.count("\n") == 1
        assert target.versions("m") == []
        pull("m", url, target)
    target.resolve("m")
