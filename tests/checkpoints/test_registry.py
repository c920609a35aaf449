"""The registry: versions appear whole, share what did not change, and show when they were changed."""

from __future__ import annotations

import hashlib
import json
import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from fedkd.checkpoints.blobs import BlobStore
from fedkd.checkpoints.manifest import CheckpointError, FileEntry, Manifest
from fedkd.checkpoints.names import pin, rollback, unpin
from fedkd.checkpoints.registry import Registry
from tests.checkpoints.folders import make_model, write_weights


@pytest.fixture()
def model(tmp_path: Path) -> Path:
    return make_model(tmp_path / "model")


def blobs(registry: Registry) -> int:
    return len(registry.blobs.digests())


def unet(registry: Registry, reference: str) -> bytes:
    return (registry.resolve(reference) / "unet/w.safetensors").read_bytes()


def damage(path: Path, data: bytes | None = None) -> None:
    """Flip the file's last bit, or write other bytes."""
    before = path.read_bytes()
    path.chmod(0o644)
    path.write_bytes(data if data is not None else before[:-1] + bytes([before[-1] ^ 1]))


def test_a_student_shares_the_blobs_that_did_not_change(model: Path, tmp_path: Path) -> None:
    registry = Registry(tmp_path / "registry")
    base = registry.publish(model, name="m")
    first = (model / "unet/w.safetensors").read_bytes()
    assert (base.version, blobs(registry)) == ("v0", 3)
    make_model(model, "two")
    facts = {"round": 1, "metrics": {"known": 0.5}, "edges": ["edge-0", "edge-1"]}
    student = registry.publish(model, name="m", parents=[base.reference], **facts)
    assert (student.version, student.parents, blobs(registry)) == ("v1", ("m:v0",), 4)
    assert student.edges == ("edge-0", "edge-1") and student.created.endswith("+00:00")
    assert unet(registry, "m") == (model / "unet/w.safetensors").read_bytes() != first == unet(registry, "m:v0")
    assert registry.names() == ["m"] and registry.versions("m") == ["v0", "v1"]


def test_publishing_the_same_again_makes_no_new_version(model: Path, tmp_path: Path) -> None:
    registry = Registry(tmp_path)
    assert registry.publish(model, name="m", round=1) == registry.publish(model, name="m", round=1)
    assert registry.versions("m") == ["v0"]


def test_publishing_an_old_version_again_does_not_move_latest_back(model: Path, tmp_path: Path) -> None:
    registry = Registry(tmp_path / "r")
    registry.publish(model, name="m")
    registry.publish(make_model(tmp_path / "two", "two"), name="m", parents=["m:v0"])
    assert registry.publish(model, name="m").version == "v0" and registry.alias("m", "latest") == "v1"


def test_a_candidate_does_not_become_latest(model: Path, tmp_path: Path) -> None:
    registry = Registry(tmp_path / "r")
    registry.publish(model, name="m")
    registry.publish(make_model(model, "worse"), name="m", parents=["m:v0"], alias="candidate")
    assert registry.resolve("m").name == "v0" and registry.resolve("m:candidate").name == "v1"


@pytest.mark.parametrize("path", ["unet/w.safetensors", "model_index.json"])
def test_one_flipped_bit_is_found_on_reading_and_repaired_by_publishing_again(
    path: str, model: Path, tmp_path: Path
) -> None:
    registry = Registry(tmp_path / "r")
    registry.publish(model, name="m")
    damage(tmp_path / "r/versions/m/v0" / path)
    with pytest.raises(CheckpointError, match="was changed"):
        registry.resolve("m")
    assert registry.publish(model, name="m").version == "v0"
    assert (registry.resolve("m") / path).read_bytes() == (model / path).read_bytes()


def test_a_file_or_link_that_was_added_is_found_on_reading(model: Path, tmp_path: Path) -> None:
    registry = Registry(tmp_path / "r")
    registry.publish(model, name="m")
    added = tmp_path / "r/versions/m/v0/unet/w.bin"
    added.write_bytes(b"pickle")
    with pytest.raises(CheckpointError, match=r"unet/w\.bin.*added"):
        registry.resolve("m")
    added.unlink()
    added.symlink_to(model)
    with pytest.raises(CheckpointError, match="symbolic link"):
        registry.resolve("m")


def test_a_symbolic_link_is_refused_and_nothing_gets_a_name(model: Path, tmp_path: Path) -> None:
    registry = Registry(tmp_path / "r")
    (model / "vae/w.safetensors").unlink()
    (model / "vae/w.safetensors").symlink_to("/proc/self/mem")
    with pytest.raises(CheckpointError, match="symbolic link"):
        registry.publish(model, name="m")
    assert registry.names() == []


def test_a_pickle_under_another_name_is_refused_and_nothing_gets_a_name(model: Path, tmp_path: Path) -> None:
    import pickle

    registry = Registry(tmp_path / "r")
    registry.publish(model, name="m")
    (model / "unet/w.safetensors").write_bytes(pickle.dumps({"w": [1.0]}))
    with pytest.raises(CheckpointError, match=r"unet/w\.safetensors"):
        registry.publish(model, name="m", parents=["m:v0"])
    assert registry.versions("m") == ["v0"] and not list((tmp_path / "r/tmp").iterdir())


def test_pickles_are_neither_published_nor_accepted(model: Path, tmp_path: Path) -> None:
    (model / "unet/W.BIN").write_bytes(b"pickle")
    with pytest.raises(CheckpointError, match=r"unet/W\.BIN.* is a pickle"):
        Registry(tmp_path / "r").publish(model, name="m")
    assert not (tmp_path / "r/versions").exists()
    for path in ("unet/w.bin", "unet/W.BIN"):
        with pytest.raises(CheckpointError, match="only safetensors"):
            FileEntry(path, "0" * 64, 1)


@pytest.mark.parametrize(
    "path",
    ["../x.json", "/etc/x.json", "a/../../x.json", "", "a\\x", "a\nb", "./a", "a//b", "manifest.json", "MODEL.SIG"],
)
def test_a_manifest_cannot_point_outside_its_folder_or_at_what_the_registry_writes(path: str) -> None:
    with pytest.raises(CheckpointError, match=r"outside|no name for"):
        FileEntry(path, "0" * 64, 1)


def test_a_manifest_reads_back_as_it_was_written_and_shows_changes(model: Path, tmp_path: Path) -> None:
    manifest = Registry(tmp_path).publish(model, name="m", metrics={"known": None}, licence="apache-2.0", edges=["e"])
    assert Manifest.from_json(manifest.to_json()) == manifest
    with pytest.raises(CheckpointError, match="changed"):
        Manifest.from_json(manifest.to_json().replace("vae/w", "vae/v"))


@pytest.mark.parametrize(
    "change",
    [
        {"name": "../m"},
        {"name": 3},
        {"version": "latest"},
        {"version": "v01"},
        {"parents": "m:v0"},
        {"round": "1"},
        {"metrics": []},
        {"files": [{"path": "a", "sha256": "0" * 64, "size": True}]},
        {"files": [{"path": "a", "sha256": "0" * 64, "size": 1}, {"path": "a/b", "sha256": "0" * 64, "size": 1}]},
        {"surprise": 1},
    ],
)
def test_a_malformed_manifest_is_refused_in_one_line(change: dict[str, object], model: Path, tmp_path: Path) -> None:
    facts = json.loads(Registry(tmp_path).publish(model, name="m").to_json())
    facts.pop("digest")
    with pytest.raises(CheckpointError) as refused:
        Manifest.from_json(json.dumps({**facts, **change}))
    assert "\n" not in str(refused.value)


def test_a_manifest_of_fedkd_0_1_is_read(model: Path, tmp_path: Path) -> None:
    manifest = Registry(tmp_path).publish(model, name="m")
    facts = {key: value for key, value in json.loads(manifest.to_json()).items() if key not in ("edges", "created")}
    assert Manifest.from_json(json.dumps({**facts, "signature": None})).digest == manifest.digest


def test_an_unknown_version_names_the_known_ones(model: Path, tmp_path: Path) -> None:
    registry = Registry(tmp_path)
    registry.publish(model, name="m")
    with pytest.raises(CheckpointError, match="known versions: v0, latest"):
        registry.resolve("m:v7")
    with pytest.raises(CheckpointError, match="known names: m"):
        registry.resolve("n")


def test_a_version_from_elsewhere_keeps_its_manifest_and_signature_byte_for_byte(model: Path, tmp_path: Path) -> None:
    here, there = Registry(tmp_path / "here"), Registry(tmp_path / "there")
    manifest = here.publish(model, name="m", sign=lambda folder: (folder / "model.sig").write_bytes(b"{}"))
    text = (here.resolve("m") / "manifest.json").read_text() + "\n"
    with pytest.raises(CheckpointError, match="missing or damaged"):
        there.install(text, signature=here.signature("m"))
    assert there.names() == []
    for entry in manifest.files:
        there.blobs.put_file(model / entry.path, entry)
    there.install(text, signature=here.signature("m"), alias="latest")
    assert (there.resolve("m") / "manifest.json").read_text() == text and there.signature("m") == b"{}"


def test_another_version_of_the_same_name_is_refused(model: Path, tmp_path: Path) -> None:
    here, there = Registry(tmp_path / "here"), Registry(tmp_path / "there")
    mine = here.publish(model, name="m")
    here.install(mine.to_json())
    other = there.publish(make_model(tmp_path / "other", "two"), name="m")
    with pytest.raises(CheckpointError, match="another m:v0 already"):
        here.install(other.to_json())
    assert here.manifest("m") == mine


def test_a_version_that_a_check_refuses_gets_no_name(model: Path, tmp_path: Path) -> None:
    def refuse(folder: Path) -> None:
        raise CheckpointError(f"no signature in {folder.name}")

    registry = Registry(tmp_path / "r")
    with pytest.raises(CheckpointError, match="no signature"):
        registry.publish(model, name="m", sign=refuse)
    assert registry.names() == [] and not list((tmp_path / "r/tmp").iterdir())


def test_publishers_at_the_same_time_get_a_version_each(tmp_path: Path) -> None:
    registry = Registry(tmp_path / "r")
    models = [make_model(tmp_path / str(number), str(number)) for number in range(6)]
    threads = [
        threading.Thread(target=Registry(tmp_path / "r").publish, args=(folder,), kwargs={"name": "m"})
        for folder in [*models, *models]
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert registry.versions("m") == [f"v{number}" for number in range(6)]
    assert len({registry.manifest(f"m:{registry.resolve(f'm:v{number}').name}").digest for number in range(6)}) == 6


def test_rollback_goes_to_the_parent_or_where_it_is_told_and_refuses_a_damaged_version(
    model: Path, tmp_path: Path
) -> None:
    registry = Registry(tmp_path / "r")
    for number in range(3):
        write_weights(model / "unet/w.safetensors", str(number))
        registry.publish(model, name="m", parents=[f"m:v{number - 1}"] if number else [])
    assert rollback(registry, "m") == ("v2", "v1") and registry.resolve("m").name == "v1"
    assert rollback(registry, "m", "v2") == ("v1", "v2")
    damage(tmp_path / "r/versions/m/v1/unet/w.safetensors")
    with pytest.raises(CheckpointError, match="was changed"):
        rollback(registry, "m")
    assert rollback(registry, "m", "v0") == ("v2", "v0")
    with pytest.raises(CheckpointError, match="name one of its versions: v0, v1, v2"):
        rollback(registry, "m")


def test_a_pin_is_of_a_version_that_is_there_and_can_be_taken_away_once(model: Path, tmp_path: Path) -> None:
    registry = Registry(tmp_path / "r")
    registry.publish(model, name="m")
    assert pin(registry, "m") == "m:v0" and registry.pins("m") == ["v0"]
    assert unpin(registry, "m:v0") == "m:v0" and registry.pins("m") == []
    with pytest.raises(CheckpointError, match="is not pinned"):
        unpin(registry, "m")
    with pytest.raises(CheckpointError, match="known versions"):
        pin(registry, "m:v4")


def look_often(store: BlobStore, entry: FileEntry) -> None:
    for _ in range(50):
        store.intact(entry)


def test_looking_for_a_blob_never_takes_one_away_that_another_writer_just_put(tmp_path: Path) -> None:
    data = b"weights" * 1000
    entry = FileEntry("w.safetensors", hashlib.sha256(data).hexdigest(), len(data))

    for attempt in range(40):
        store = BlobStore(tmp_path / str(attempt))
        with ThreadPoolExecutor(4) as pool:
            looks = [pool.submit(look_often, store, entry) for _ in range(3)]
            pool.submit(store.put_bytes, entry.sha256, data).result()
            for look in looks:
                look.result()
        assert store.intact(entry)
