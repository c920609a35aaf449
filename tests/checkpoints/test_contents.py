"""A file is what its bytes are: nothing but weights, text and pictures gets through, under any name."""

from __future__ import annotations

import io
import json
import os
import pickle
import struct
import tarfile
import zipfile
from pathlib import Path

import pytest

from fedkd.checkpoints.contents import check_file, check_folder
from fedkd.checkpoints.manifest import CheckpointError, Manifest, scan_folder
from tests.checkpoints.folders import make_model

SHIPPED = Path(__file__).resolve().parents[2] / "checkpoints"


def zipped() -> bytes:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as archive:
        archive.writestr("archive/data.pkl", b"x")
    return buffer.getvalue()


def tarred() -> bytes:
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w") as archive:
        archive.addfile(tarfile.TarInfo("x"))
    return buffer.getvalue()


FOREIGN = {
    "pickle": pickle.dumps({"w": [1.0]}),
    "old pickle": pickle.dumps(os.getcwd, protocol=0),
    "zip": zipped(),
    "tar": tarred(),
    "executable": b"\x7fELF" + bytes(60),
    "script": b"#!/bin/sh\necho\n",
    "gzip": b"\x1f\x8b\x08" + bytes(20),
    "nothing": b"",
}


@pytest.mark.parametrize("kind", FOREIGN)
@pytest.mark.parametrize("name", ["w.safetensors", "config.json", "spiece.model", "card.png"])
def test_foreign_bytes_are_refused_whatever_they_are_called(kind: str, name: str, tmp_path: Path) -> None:
    path = tmp_path / name
    path.write_bytes(FOREIGN[kind])
    with pytest.raises(CheckpointError):
        check_file(path, f"unet/{name}")


@pytest.mark.parametrize("kind", sorted(set(FOREIGN) - {"nothing"}))
def test_foreign_bytes_are_refused_as_text_too(kind: str, tmp_path: Path) -> None:
    path = tmp_path / "merges.txt"
    path.write_bytes(FOREIGN[kind])
    with pytest.raises(CheckpointError, match=r"by its content|no UTF-8|zero byte"):
        check_file(path, "tokenizer/merges.txt")


def safetensors(header: object, data: bytes = bytes(8), length: int | None = None) -> bytes:
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    return struct.pack("<Q", len(text) if length is None else length) + text + data


def tensor(begin: int = 0, end: int = 8, shape: tuple[int, ...] = (2,), dtype: str = "F32") -> dict[str, object]:
    return {"dtype": dtype, "shape": list(shape), "data_offsets": [begin, end]}


BROKEN = {
    "a header longer than the file": safetensors({"w": tensor()}, length=2**40),
    "no header": struct.pack("<Q", 0) + bytes(8),
    "a header that is no JSON": safetensors(b"{not json"),
    "offsets past the end": safetensors({"w": tensor(0, 16, (4,))}),
    "offsets that run backwards": safetensors({"w": tensor(8, 0)}),
    "a hole": safetensors({"v": tensor(0, 4, (1,)), "w": tensor(8, 12, (1,))}, bytes(12)),
    "an overlap": safetensors({"v": tensor(0, 8), "w": tensor(4, 12)}, bytes(12)),
    "bytes after the last tensor": safetensors({"w": tensor()}, bytes(8) + zipped()),
    "a shape that does not fit": safetensors({"w": tensor(0, 8, (3,))}),
    "an unknown type": safetensors({"w": tensor(dtype="PICKLE")}),
    "half a file": safetensors({"w": tensor()})[:-4],
}


@pytest.mark.parametrize("kind", BROKEN)
def test_broken_safetensors_are_refused(kind: str, tmp_path: Path) -> None:
    path = tmp_path / "w.safetensors"
    path.write_bytes(BROKEN[kind])
    with pytest.raises(CheckpointError, match="no safetensors file"):
        check_file(path, "unet/w.safetensors")


def test_whole_safetensors_are_taken_with_the_types_that_models_use(tmp_path: Path) -> None:
    path = tmp_path / "w.safetensors"
    path.write_bytes(safetensors({"__metadata__": {"format": "pt"}, "w": tensor(0, 8, (4,), "BF16")}))
    check_file(path, "unet/w.safetensors")


def test_the_shipped_model_is_taken_whole() -> None:
    folder = SHIPPED / "tiny-sd"
    check_folder(folder, Manifest("m", "v0", scan_folder(folder)))


@pytest.mark.parametrize(
    ("name", "data"),
    [
        ("LICENSE", b"Apache"),
        ("README.md", "# Karte äöü.".encode()),
        ("tokenizer/merges.txt", b"#version: 0.2\ni n\n"),
        ("tokenizer/spiece.model", b"\x0a\x03abc\x0a\x02de\x12\x01x"),
        ("card.png", b"\x89PNG\r\n\x1a\n" + bytes(8)),
    ],
)
def test_what_belongs_to_a_model_is_taken(name: str, data: bytes, tmp_path: Path) -> None:
    path = tmp_path / Path(name).name
    path.write_bytes(data)
    check_file(path, name)


@pytest.mark.parametrize("name", ["model.onnx", "pipeline.py", "weights.h5", "model.tar.gz"])
def test_other_kinds_of_file_are_refused_and_the_allowed_ones_named(name: str, tmp_path: Path) -> None:
    (tmp_path / name).write_bytes(b"harmless text")
    with pytest.raises(CheckpointError, match="allowed are safetensors"):
        check_file(tmp_path / name, name)


def test_deeply_nested_json_is_refused_in_one_line(tmp_path: Path) -> None:
    (tmp_path / "c.json").write_text("[" * 200_000)
    with pytest.raises(CheckpointError, match="no JSON"):
        check_file(tmp_path / "c.json", "c.json")


def test_symlinks_strangers_and_holes_in_a_folder_are_refused(tmp_path: Path) -> None:
    folder = make_model(tmp_path / "model")
    manifest = Manifest("m", "v0", scan_folder(folder))
    check_folder(folder, manifest)
    (folder / "extra.json").write_text("{}")
    with pytest.raises(CheckpointError, match=r"extra\.json.*not in the manifest"):
        check_folder(folder, manifest)
    (folder / "extra.json").unlink()
    weights = folder / "unet/w.safetensors"
    weights.rename(tmp_path / "elsewhere")
    with pytest.raises(CheckpointError, match="missing"):
        check_folder(folder, manifest)
    weights.symlink_to(tmp_path / "elsewhere")
    with pytest.raises(CheckpointError, match="symlink"):
        check_folder(folder, manifest)
    weights.unlink()
    os.mkfifo(weights)
    with pytest.raises(CheckpointError):
        check_folder(folder, manifest)


def test_a_linked_folder_is_refused(tmp_path: Path) -> None:
    folder = make_model(tmp_path / "model")
    manifest = Manifest("m", "v0", scan_folder(folder))
    (folder / "unet").rename(tmp_path / "unet")
    (folder / "unet").symlink_to(tmp_path / "unet")
    with pytest.raises(CheckpointError, match="'unet' is a symlink"):
        check_folder(folder, manifest)
