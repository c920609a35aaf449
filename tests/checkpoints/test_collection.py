"""gc removes what nobody needs, and never what a name, a pin, a lineage root or a writer at work needs."""

from __future__ import annotations

import threading
from pathlib import Path

import pytest

from fedkd.checkpoints.collection import collect
from fedkd.checkpoints.manifest import CheckpointError
from fedkd.checkpoints.names import pin, rollback, unpin
from fedkd.checkpoints.registry import Registry
from tests.checkpoints.folders import make_model, write_weights


@pytest.fixture()
def registry(tmp_path: Path) -> Registry:
    """v0 … v5, each the child of the one before; latest is v5."""
    registry, model = Registry(tmp_path / "r"), make_model(tmp_path / "model", "0")
    registry.publish(model, name="m")
    for number in range(1, 6):
        write_weights(model / "unet/w.safetensors", str(number), 1000)
        registry.publish(model, name="m", parents=[f"m:v{number - 1}"], round=number)
    return registry


def test_names_pins_roots_and_the_version_before_latest_stay(registry: Registry) -> None:
    pin(registry, "m:v2")
    registry.point("m", "candidate", "v1")
    size = (registry.resolve("m:v3") / "unet/w.safetensors").stat().st_size
    done = collect(registry)
    assert done.versions == ("m:v3",) and (done.blobs, done.freed_bytes) == (1, size)
    assert done.kept == {
        "m:v0": "root",
        "m:v1": "candidate",
        "m:v2": "pinned",
        "m:v4": "for rollback",
        "m:v5": "latest",
    }
    for version in registry.versions("m"):
        registry.resolve(f"m:{version}")
    assert rollback(registry, "m") == ("v5", "v4")


def test_a_dry_run_says_the_same_and_removes_nothing(registry: Registry) -> None:
    told = collect(registry, dry_run=True)
    assert told.versions == ("m:v1", "m:v2", "m:v3") and registry.versions("m") == [f"v{n}" for n in range(6)]
    assert collect(registry) == told and collect(registry).versions == ()


def test_a_removed_version_is_told_and_its_number_is_never_given_again(registry: Registry, tmp_path: Path) -> None:
    rollback(registry, "m", "v2")
    assert "m:v5" in collect(registry).versions
    with pytest.raises(CheckpointError, match="was removed by gc"):
        registry.resolve("m:v5")
    write_weights(tmp_path / "model/unet/w.safetensors", "new")
    assert registry.publish(tmp_path / "model", name="m", parents=["m:v2"]).version == "v6"


def test_an_unpinned_version_goes(registry: Registry) -> None:
    pin(registry, "m:v2")
    collect(registry)
    unpin(registry, "m:v2")
    assert collect(registry).versions == ("m:v2",)


def test_blobs_that_two_versions_share_stay_while_one_of_them_does(registry: Registry, tmp_path: Path) -> None:
    vae = next(entry for entry in registry.manifest("m:v3").files if entry.path.startswith("vae"))
    collect(registry)
    assert registry.blobs.intact(vae)


def test_what_killed_writers_left_goes(registry: Registry, tmp_path: Path) -> None:
    part = registry.blobs.part("0" * 64)
    part.write_bytes(b"half")
    (registry.root / "tmp/dead.part/unet").mkdir(parents=True)
    (registry.root / "tmp/dead.part/unet/w.safetensors").write_bytes(b"half")
    (registry.root / "names/m/latest.dead.part").write_text("v")
    assert collect(registry).leftovers == 3
    assert not list(registry.root.rglob("*.part"))


def test_gc_waits_for_writers_and_says_so_when_they_do_not_end(registry: Registry) -> None:
    done: list[object] = []
    with registry.locks.writing(), registry.locks.writing():
        with pytest.raises(CheckpointError, match="publishing or pulling"):
            collect(Registry(registry.root), wait_s=0.05)
        thread = threading.Thread(target=lambda: done.append(collect(Registry(registry.root))))
        thread.start()
        thread.join(timeout=0.2)
        assert not done and registry.versions("m") == [f"v{n}" for n in range(6)]
    thread.join()
    assert done and registry.versions("m") == ["v0", "v4", "v5"]


def test_a_version_whose_manifest_cannot_be_read_stops_gc(registry: Registry) -> None:
    path = registry.root / "versions/m/v3/manifest.json"
    path.write_text("{")
    with pytest.raises(CheckpointError, match=r"manifest\.json"):
        collect(registry)
    assert registry.versions("m") == [f"v{n}" for n in range(6)]


def test_there_is_nothing_to_collect_where_no_registry_is(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match="no registry"):
        collect(Registry(tmp_path / "nowhere"))
    assert not (tmp_path / "nowhere").exists()
