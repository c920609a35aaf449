"""The manifest of a published checkpoint: which files make it, where it comes from, what it scored."""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Iterable
from dataclasses import asdict, dataclass, field
from pathlib import Path, PurePosixPath
from typing import Any

MANIFEST_NAME = "manifest.json"
SIGNATURE_NAME = "model.sig"
RESERVED = frozenset({MANIFEST_NAME, SIGNATURE_NAME})  # what a version's folder holds beside its files
PICKLED_SUFFIXES = frozenset({".bin", ".pt", ".pth", ".ckpt", ".pkl", ".pickle"})
REFUSED_SUFFIXES = PICKLED_SUFFIXES | {".py", ".part"}
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]*")
VERSION = re.compile(r"v(0|[1-9][0-9]{0,8})")
_SHA256 = re.compile(r"[0-9a-f]{64}")


class CheckpointError(ValueError):
    """A checkpoint, manifest or blob that is missing, damaged or not allowed."""


class Gone(CheckpointError):
    """A blob that a manifest names and that a store does not have."""


@dataclass(frozen=True)
class Derivation:
    """How the content `sha256` is made: LoRA file `lora` (`lora_size` bytes) merged into the weights `base`.

    Base and result have the same size. Whoever holds the base needs the LoRA file alone, and checks the result.
    """

    sha256: str
    base: str
    lora: str
    lora_size: int

    def __post_init__(self) -> None:
        digests = (self.sha256, self.base, self.lora)
        if not all(isinstance(digest, str) and _SHA256.fullmatch(digest) for digest in digests):
            raise CheckpointError("manifest has a derivation with a malformed sha256")
        if type(self.lora_size) is not int or self.lora_size < 0:
            raise CheckpointError(f"manifest has a derivation from a LoRA file of size {self.lora_size}")


@dataclass(frozen=True)
class FileEntry:
    """One file of a checkpoint: POSIX path inside its folder, sha256 in hex, size in bytes."""

    path: str
    sha256: str
    size: int

    def __post_init__(self) -> None:
        path = self.path if isinstance(self.path, str) else ""
        parts = PurePosixPath(path).parts
        if not parts or path.startswith("/") or ".." in parts or "\\" in path or not path.isprintable():
            raise CheckpointError(f"manifest names the file '{self.path}', which lies outside the checkpoint folder")
        if "/".join(parts) != path or parts[0].casefold() in RESERVED:
            raise CheckpointError(f"manifest names the file '{path}', which is no name for a checkpoint's file")
        if PurePosixPath(path).suffix.casefold() in REFUSED_SUFFIXES:
            raise CheckpointError(f"manifest names '{path}'; only safetensors and text files are allowed")
        if not isinstance(self.sha256, str) or not _SHA256.fullmatch(self.sha256):
            raise CheckpointError(f"manifest gives '{path}' the malformed sha256 '{self.sha256}'")
        if type(self.size) is not int or self.size < 0:
            raise CheckpointError(f"manifest gives '{path}' the size {self.size}")


@dataclass(frozen=True)
class Manifest:
    """What a checkpoint is: its files by content, its parents, the round and recipe that made it."""

    name: str
    version: str
    files: tuple[FileEntry, ...]
    parents: tuple[str, ...] = ()
    recipe_digest: str = ""
    round: int = 0
    metrics: dict[str, Any] = field(default_factory=dict)
    licence: str = ""
    base_model: str = ""
    sampling: dict[str, Any] = field(default_factory=dict)  # how a few-step student is drawn; empty: as the base
    edges: tuple[str, ...] = ()  # names of the edges that taught it
    created: str = ""  # when it was published, ISO 8601 in UTC
    derived: tuple[Derivation, ...] = ()  # contents that parent and LoRA file give, its parents' own included

    def __post_init__(self) -> None:
        if not isinstance(self.name, str) or not isinstance(self.version, str):
            raise CheckpointError(f"malformed {MANIFEST_NAME}: name and version have to be text")
        check_name(self.name)
        check_version(self.version)
        texts = (*self.parents, *self.edges, self.recipe_digest, self.licence, self.base_model, self.created)
        if not all(isinstance(text, str) for text in texts) or type(self.round) is not int:
            raise CheckpointError(f"malformed {MANIFEST_NAME} of {self.reference}: a fact has the wrong type")
        if not isinstance(self.metrics, dict) or not isinstance(self.sampling, dict):
            raise CheckpointError(f"malformed {MANIFEST_NAME} of {self.reference}: metrics and sampling are tables")
        if len({derivation.sha256 for derivation in self.derived}) != len(self.derived):
            raise CheckpointError(f"malformed {MANIFEST_NAME} of {self.reference}: a content is derived twice")
        bases = {derivation.sha256: derivation.base for derivation in self.derived}
        for digest in bases:
            for _ in bases:
                digest = bases.get(digest, "")
            if digest in bases:
                raise CheckpointError(
                    f"malformed {MANIFEST_NAME} of {self.reference}: a content is derived from itself"
                )
        paths = {entry.path for entry in self.files}
        if len(paths) != len(self.files):
            raise CheckpointError(f"malformed {MANIFEST_NAME}: a file is named twice")
        for path in paths:
            above = {str(parent) for parent in PurePosixPath(path).parents} & paths
            if above:
                raise CheckpointError(f"malformed {MANIFEST_NAME}: '{above.pop()}' is both a file and a folder")

    @property
    def size_bytes(self) -> int:
        """Bytes of all files."""
        return sum(entry.size for entry in self.files)

    @property
    def blobs(self) -> dict[str, int]:
        """{sha256: size in bytes} of the distinct contents."""
        return {entry.sha256: entry.size for entry in self.files}

    @property
    def reference(self) -> str:
        """`name:version`."""
        return f"{self.name}:{self.version}"

    @property
    def digest(self) -> str:
        """sha256 over the sorted (path, sha256, size) of all files: the identity of the content."""
        rows = sorted((entry.path, entry.sha256, entry.size) for entry in self.files)
        return hashlib.sha256(json.dumps(rows, separators=(",", ":")).encode()).hexdigest()

    def to_json(self) -> str:
        """The manifest as indented JSON, files sorted by path."""
        facts = asdict(self)
        facts["files"] = sorted(facts["files"], key=lambda entry: entry["path"])
        return json.dumps({**facts, "digest": self.digest}, indent=2, allow_nan=False)

    @classmethod
    def from_json(cls, text: str) -> Manifest:
        """Read a manifest; CheckpointError when a key is missing or malformed, or the digest is wrong."""
        try:
            facts = json.loads(text)
            digest = facts.pop("digest", None)
            facts["files"] = tuple(FileEntry(**entry) for entry in facts["files"])
            facts["parents"], facts["edges"] = texts(facts["parents"]), texts(facts.get("edges", []))
            facts["derived"] = tuple(Derivation(**each) for each in facts.get("derived", []))
            facts.pop("signature", None)  # manifests of fedkd 0.1 had one, always empty
            manifest = cls(**facts)
        except CheckpointError:
            raise
        except (ValueError, TypeError, KeyError, AttributeError, RecursionError) as error:
            raise CheckpointError(f"malformed {MANIFEST_NAME}: {error}") from error
        if digest is not None and digest != manifest.digest:
            raise CheckpointError(f"{MANIFEST_NAME} of {manifest.reference} was changed after it was written")
        return manifest


def texts(value: Any) -> tuple[str, ...]:
    """A JSON list of texts as a tuple; TypeError for anything else."""
    if not isinstance(value, list) or not all(isinstance(text, str) for text in value):
        raise TypeError(f"{value!r:.40} is no list of texts")
    return tuple(value)


def check_name(name: str) -> str:
    """Return `name` if it can be a checkpoint's name or version, else raise CheckpointError."""
    if not _NAME.fullmatch(name):
        raise CheckpointError(f"'{name}' is no checkpoint name; use letters, digits, '.', '_' and '-'")
    return name


def check_version(version: str) -> str:
    """Return `version` if it is v0, v1, v2, …, else raise CheckpointError."""
    if not VERSION.fullmatch(version):
        raise CheckpointError(f"'{version}' is no version; versions are v0, v1, v2, …")
    return version


def ordered(versions: Iterable[str]) -> list[str]:
    """Those texts that are versions, oldest first: v2 before v10."""
    return sorted((v for v in versions if v[1:].isdecimal() and v[0] == "v"), key=lambda version: int(version[1:]))


def in_its_place(manifest: Manifest, folder: Path) -> Manifest:
    """The manifest, if it is that of the folder's name and version, else CheckpointError."""
    if manifest.reference != f"{folder.parent.name}:{folder.name}":
        raise CheckpointError(
            f"'{folder}' holds {manifest.reference}, not what its place says; delete it, fetch it again"
        )
    return manifest


def file_digest(path: Path) -> str:
    """sha256 in hex of a file's bytes."""
    with path.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


def scan_folder(folder: Path) -> tuple[FileEntry, ...]:
    """The files of a pipeline folder, sorted by path; code and hidden files are left out.

    CheckpointError for a symbolic link, since what it points at is not part of the folder, and for a pickle.
    """
    if not (folder / "model_index.json").is_file():
        raise CheckpointError(f"'{folder}' is no diffusers pipeline folder: model_index.json is missing")
    entries = []
    for path in sorted(folder.rglob("*")):
        inside = path.relative_to(folder)
        if path.is_symlink():
            raise CheckpointError(
                f"'{inside}' in '{folder}' is a symbolic link; publish a copy with the files themselves (cp -rL)"
            )
        hidden = any(part.startswith(".") for part in inside.parts)
        if path.is_file() and not hidden and path.suffix.casefold() in PICKLED_SUFFIXES:
            raise CheckpointError(
                f"'{inside}' in '{folder}' is a pickle; a checkpoint holds safetensors alone: save the weights so, and "
                "delete it"
            )
        reserved = inside.parts[0].casefold() in RESERVED
        if not path.is_file() or hidden or reserved or path.suffix.casefold() in REFUSED_SUFFIXES:
            continue
        entries.append(FileEntry(inside.as_posix(), file_digest(path), path.stat().st_size))
    return tuple(entries)
