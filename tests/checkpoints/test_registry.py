"""The registry: versions appear whole, share what did not change, and show when they were changed."""

from __future__ import annotations

from pathlib import Path

import pytest

from fedkd.checkpoints.manifest import CheckpointError, FileEntry, Manifest
from fedkd.checkpoints.registry import Registry


@pytest.fixture()
def model(tmp_path: Path) -> Path:
    folder = tmp_path / "model"
    for path, text in {
        "model_index.json": "{}",
        "unet/w.safetensors": "one",
        "vae/w.safetensors": "vae",
    }.items():
        (folder / path).parent.mkdir(parents=True, exist_ok=True)
        (folder / path).write_text(text)
    return folder


def blobs(registry: Registry) -> int:
    return len(registry.blobs.digests())


def test_a_student_shares_the_blobs_that_did_not_change(model: Path, tmp_path: Path) -> None:
    registry = Registry(tmp_path / "registry")
    base = registry.publish(model, name="m")
    assert (base.version, blobs(registry)) == ("v0", 3)
    (model / "unet/w.safetensors").write_text("two")
    student = registry.publish(model, name="m", parents=[base.reference], round=1, metrics={"known": 0.5})
    assert (student.version, student.parents, blobs(registry)) == ("v1", ("m:v0",), 4)
    assert (registry.resolve("m") / "unet/w.safetensors").read_text() == "two"
    assert (registry.resolve("m:v0") / "unet/w.safetensors").read_text() == "one"
    assert registry.names() == ["m"] and registry.versions("m") == ["v0", "v1"]


def test_publishing_the_same_again_makes_no_new_version(model: Path, tmp_path: Path) -> None:
    registry = Registry(tmp_path)
    assert registry.publish(model, name="m", round=1) == registry.publish(model, name="m", round=1)
    assert registry.versions("m") == ["v0"]


def test_a_candidate_does_not_become_latest(model: Path, tmp_path: Path) -> None:
    registry = Registry(tmp_path)
    registry.publish(model, name="m")
    (model / "unet/w.safetensors").write_text("worse")
    registry.publish(model, name="m", parents=["m:v0"], alias="candidate")
    assert registry.resolve("m").name == "v0" and registry.resolve("m:candidate").name == "v1"


def test_a_changed_file_is_found_on_reading(model: Path, tmp_path: Path) -> None:
    registry = Registry(tmp_path)
    registry.publish(model, name="m")
    target = tmp_path / "versions/m/v0/unet/w.safetensors"
    target.chmod(0o644)
    target.write_text("evil")
    with pytest.raises(CheckpointError, match=r"unet/w\.safetensors.*changed"):
        registry.resolve("m")


def test_nothing_half_written_lies_under_a_final_name(model: Path, tmp_path: Path) -> None:
    registry = Registry(tmp_path / "r")
    (model / "vae/w.safetensors").unlink()
    (model / "vae/w.safetensors").symlink_to("/proc/self/mem")  # reading it fails midway
    with pytest.raises((OSError, CheckpointError)):
        registry.publish(model, name="m")
    assert registry.versions("m") == [] and registry.names() == []


def test_pickles_are_neither_published_nor_accepted(model: Path, tmp_path: Path) -> None:
    (model / "unet/w.bin").write_bytes(b"pickle")
    manifest = Registry(tmp_path).publish(model, name="m")
    assert not any(entry.path.endswith(".bin") for entry in manifest.files)
    with pytest.raises(CheckpointError, match="only safetensors"):
        FileEntry("unet/w.bin", "0" * 64, 1)


@pytest.mark.parametrize("path", ["../x.json", "/etc/x.json", "a/../../x.json", ""])
def test_a_manifest_cannot_point_outside_its_folder(path: str) -> None:
    with pytest.raises(CheckpointError, match="outside"):
        FileEntry(path, "0" * 64, 1)


def test_a_manifest_reads_back_as_it_was_written_and_shows_changes(model: Path, tmp_path: Path) -> None:
    manifest = Registry(tmp_path).publish(model, name="m", metrics={"known": None}, licence="apache-2.0")
    assert Manifest.from_json(manifest.to_json()) == manifest
    with pytest.raises(CheckpointError, match="changed"):
        Manifest.from_json(manifest.to_json().replace("vae/w", "vae/v"))


def test_an_unknown_version_names_the_known_ones(model: Path, tmp_path: Path) -> None:
    registry = Registry(tmp_path)
    registry.publish(model, name="m")
    with pytest.raises(CheckpointError, match="known versions: v0"):
        registry.resolve("m:v7")
    with pytest.raises(CheckpointError, match="known names: m"):
        registry.resolve("n")
