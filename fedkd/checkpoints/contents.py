"""What may lie in a checkpoint: a file is what its bytes are, whatever its name says."""

from __future__ import annotations

import json
import os
import pickletools
import stat
from collections.abc import Callable, Iterable
from pathlib import Path, PurePosixPath

from fedkd.checkpoints.completeness import check_complete
from fedkd.checkpoints.manifest import RESERVED, CheckpointError, Manifest

MAX_TEXT_BYTES = 256 * 2**20
ALLOWED = "safetensors, JSON, text, tokenizer models and pictures"
MAGIC: tuple[tuple[int, bytes, str], ...] = (  # (offset, bytes, what begins so)
    (0, b"PK\x03\x04", "a zip archive (as torch.save writes them)"),
    (0, b"PK\x05\x06", "a zip archive"),
    (0, b"PK\x07\x08", "a zip archive"),
    (0, b"\x7fELF", "an executable"),
    (0, b"MZ", "an executable"),
    (0, b"\xcf\xfa\xed\xfe", "an executable"),
    (0, b"\xce\xfa\xed\xfe", "an executable"),
    (0, b"\xfe\xed\xfa\xce", "an executable"),
    (0, b"\xfe\xed\xfa\xcf", "an executable"),
    (0, b"\xca\xfe\xba\xbe", "an executable"),
    (0, b"\x00asm", "an executable"),
    (0, b"#!", "a script"),
    (0, b"\x1f\x8b", "a gzip archive"),
    (0, b"BZh", "a bzip2 archive"),
    (0, b"\xfd7zXZ\x00", "an xz archive"),
    (0, b"7z\xbc\xaf\x27\x1c", "a 7z archive"),
    (0, b"\x28\xb5\x2f\xfd", "a zstd archive"),
    (257, b"ustar", "a tar archive"),
    (0, b"\x89HDF\r\n", "an HDF5 file"),
)
PICTURES = {".png": b"\x89PNG\r\n\x1a\n", ".jpg": b"\xff\xd8\xff", ".jpeg": b"\xff\xd8\xff", ".webp": b"RIFF"}
TEXTS = frozenset({".txt", ".md", ".jinja", ""})  # '' for LICENSE and NOTICE


def check_file(path: Path, name: str) -> None:
    """CheckpointError unless the regular file at `path` is, by its bytes, what `name` says it is.

    `name` is its POSIX path inside the checkpoint; safetensors are parsed, JSON is read, a pickle, an
    archive or an executable is refused under any name.
    """
    if not stat.S_ISREG(os.lstat(path).st_mode):
        kind = "a symlink" if path.is_symlink() else "no regular file"
        raise CheckpointError(f"'{name}' is {kind}; a checkpoint holds regular files alone, copy the content there")
    suffix = PurePosixPath(name).suffix.lower()
    if suffix == ".safetensors":
        _safetensors(path, name)
        return
    with path.open("rb") as stream:
        head = stream.read(512)
    _refuse_magic(head, name)
    check = _BY_SUFFIX.get(suffix)
    if check is None:
        raise CheckpointError(f"'{name}' is no file that a checkpoint may hold; allowed are {ALLOWED}")
    if path.stat().st_size > MAX_TEXT_BYTES:
        raise CheckpointError(f"'{name}' has {path.stat().st_size} bytes; beside weights the limit is {MAX_TEXT_BYTES}")
    check(path.read_bytes(), name)


def check_folder(folder: Path, manifest: Manifest, *, beside: Iterable[str] = RESERVED) -> None:
    """CheckpointError unless `folder` holds the manifest's files, each what its name says, and nothing else.

    What model_index.json names has to be among them. Files named in `beside` may lie there too. Digests are not
    compared here.
    """
    allowed = {entry.path for entry in manifest.files}
    for root, folders, files in os.walk(folder):
        for name in [*folders, *files]:
            path = Path(root, name)
            inside = path.relative_to(folder).as_posix()
            if path.is_symlink():
                raise CheckpointError(f"{manifest.reference}: '{inside}' is a symlink; copy the content there")
            if name in files and inside not in allowed and inside not in beside:
                raise CheckpointError(f"{manifest.reference}: '{inside}' is not in the manifest; remove it")
    for entry in manifest.files:
        path = folder / entry.path
        if not path.is_file():
            raise CheckpointError(f"{manifest.reference}: '{entry.path}' is missing; publish or fetch it again")
        check_file(path, entry.path)
    check_complete(folder, manifest.reference)


def _refuse_magic(head: bytes, name: str) -> None:
    for offset, magic, kind in MAGIC:
        if head[offset : offset + len(magic)] == magic:
            raise CheckpointError(f"'{name}' is {kind} by its content; allowed are {ALLOWED}")
    if len(head) > 1 and head[0] == 0x80 and head[1] <= 5:
        raise CheckpointError(f"'{name}' is a pickle by its content; save the weights as safetensors")


def _safetensors(path: Path, name: str) -> None:
    """Parse the header with the library that loads the file: lengths, dtypes, offsets without gap or overlap."""
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(path, framework="np") as file:
            file.keys()  # the header is checked on opening
    except (SafetensorError, OSError, ValueError) as error:
        with path.open("rb") as stream:
            _refuse_magic(stream.read(512), name)
        raise CheckpointError(f"'{name}' is no safetensors file: {error}; save the weights as safetensors") from error


def _json(data: bytes, name: str) -> None:
    try:
        json.loads(data)
    except (ValueError, RecursionError) as error:
        raise CheckpointError(f"'{name}' is no JSON: {error}") from error


def _text(data: bytes, name: str) -> None:
    try:
        text = data.decode("utf-8")
    except UnicodeDecodeError as error:
        raise CheckpointError(f"'{name}' is no UTF-8 text; allowed are {ALLOWED}") from error
    if "\0" in text:
        raise CheckpointError(f"'{name}' is no text: it holds a zero byte")
    if data.rstrip().endswith(b".") and _is_pickle(data.rstrip()):
        raise CheckpointError(f"'{name}' is a pickle by its content; save the weights as safetensors")


def _is_pickle(data: bytes) -> bool:
    """Whether the bytes are one whole pickle that builds something; it is taken apart, never run."""
    try:
        operations = [(opcode.name, place) for opcode, _, place in pickletools.genops(data)]
    except Exception:  # whatever is not understood is not a pickle that could be loaded
        return False
    return len(operations) > 1 and operations[-1] == ("STOP", len(data) - 1)


def _sentencepiece(data: bytes, name: str) -> None:
    """A SentencePiece model: protobuf fields of length-delimited records that fill the file exactly."""
    place, pieces = 0, 0
    while place < len(data):
        key, place = _varint(data, place, name)
        length, place = _varint(data, place, name)
        if key & 7 != 2 or not 1 <= key >> 3 < 2**29 or place + length > len(data):
            raise CheckpointError(f"'{name}' is no SentencePiece model; allowed are {ALLOWED}")
        pieces += key >> 3 == 1
        place += length
    if not pieces:
        raise CheckpointError(f"'{name}' is no SentencePiece model: it holds no piece")


def _varint(data: bytes, place: int, name: str) -> tuple[int, int]:
    value = 0
    for shift in range(0, 35, 7):
        if place >= len(data):
            break
        byte = data[place]
        value, place = value | (byte & 0x7F) << shift, place + 1
        if byte < 0x80:
            return value, place
    raise CheckpointError(f"'{name}' is no SentencePiece model; allowed are {ALLOWED}")


def _picture(data: bytes, name: str) -> None:
    if not data.startswith(PICTURES[PurePosixPath(name).suffix.lower()]):
        raise CheckpointError(f"'{name}' is no picture of the kind that its name says")


_BY_SUFFIX: dict[str, Callable[[bytes, str], None]] = {
    ".json": _json,
    ".model": _sentencepiece,
    **dict.fromkeys(TEXTS, _text),
    **dict.fromkeys(PICTURES, _picture),
}
