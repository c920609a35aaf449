"""The manifest of a published checkpoint: which files make it, where it comes from, what it scored."""

from __future__ import annotations

import hashlib
import json
import re
from dataclasses import asdict, dataclass, field
from pathlib import Path, PurePosixPath
from typing import Any

MANIFEST_NAME = "manifest.json"
REFUSED_SUFFIXES = frozenset({".bin", ".pt", ".pth", ".ckpt", ".pkl", ".pickle", ".py", ".part"})
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]*")
_SHA256 = re.compile(r"[0-9a-f]{64}")


class CheckpointError(ValueError):
    """A checkpoint, manifest or blob that is missing, damaged or not allowed."""


@dataclass(frozen=True)
class FileEntry:
    """One file of a checkpoint: POSIX path inside its folder, sha256 in hex, size in bytes."""

    path: str
    sha256: str
    size: int

    def __post_init__(self) -> None:
        parts = PurePosixPath(self.path).parts
        if not parts or self.path.startswith("/") or ".." in parts or "\\" in self.path:
            raise CheckpointError(
                f"manifest names the file '{self.path}', which lies outside the checkpoint folder"
            )
        if PurePosixPath(self.path).suffix in REFUSED_SUFFIXES:
            raise CheckpointError(
                f"manifest names '{self.path}'; only safetensors and text files are allowed"
            )
        if not _SHA256.fullmatch(self.sha256):
            raise CheckpointError(f"manifest gives '{self.path}' the malformed sha256 '{self.sha256}'")
        if self.size < 0:
            raise CheckpointError(f"manifest gives '{self.path}' the size {self.size}")


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
    signature: str | None = None

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
            facts["parents"] = tuple(facts["parents"])
            manifest = cls(**facts)
        except CheckpointError:
            raise
        except (ValueError, TypeError, KeyError, AttributeError) as error:
            raise CheckpointError(f"malformed {MANIFEST_NAME}: {error}") from error
        if len({entry.path for entry in manifest.files}) != len(manifest.files):
            raise CheckpointError(f"malformed {MANIFEST_NAME}: a file is named twice")
        if digest is not None and digest != manifest.digest:
            raise CheckpointError(f"{MANIFEST_NAME} of {manifest.reference} was changed after it was written")
        return manifest


def check_name(name: str) -> str:
    """Return `name` if it can be a checkpoint's name or version, else raise CheckpointError."""
    if not _NAME.fullmatch(name):
        raise CheckpointError(f"'{name}' is no checkpoint name; use letters, digits, '.', '_' and '-'")
    return name


def file_digest(path: Path) -> str:
    """sha256 in hex of a file's bytes."""
    with path.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


def scan_folder(folder: Path) -> tuple[FileEntry, ...]:
    """The files of a pipeline folder, sorted by path; pickled weights, code and hidden files are left out."""
    if not (folder / "model_index.json").is_file():
        raise CheckpointError(f"'{folder}' is no diffusers pipeline folder: model_index.json is missing")
    entries = []
    for path in sorted(folder.rglob("*")):
        inside = path.relative_to(folder)
        hidden = any(part.startswith(".") for part in inside.parts)
        if not path.is_file() or hidden or path.suffix in REFUSED_SUFFIXES or inside.name == MANIFEST_NAME:
            continue
        entries.append(FileEntry(inside.as_posix(), file_digest(path), path.stat().st_size))
    return tuple(entries)
