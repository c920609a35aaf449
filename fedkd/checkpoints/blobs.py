"""Content-addressed files: each distinct content is stored once, under its sha256."""

from __future__ import annotations

import contextlib
import hashlib
import os
import shutil
import uuid
from collections.abc import Iterable
from pathlib import Path

from fedkd.checkpoints.manifest import (
    MANIFEST_NAME,
    RESERVED,
    SIGNATURE_NAME,
    CheckpointError,
    FileEntry,
    Manifest,
    file_digest,
)


class BlobStore:
    """Blobs below `root`/blobs/sha256/, written atomically and never changed."""

    def __init__(self, root: Path) -> None:
        self.folder = root / "blobs" / "sha256"

    def path(self, sha256: str) -> Path:
        """Where the blob with this digest lies or would lie."""
        return self.folder / sha256[:2] / sha256

    def find(self, sha256: str) -> Path | None:
        """Where the blob lies, if it does."""
        path = self.path(sha256)
        return path if path.is_file() else None

    def has(self, entry: FileEntry) -> bool:
        """Whether the blob is stored with the right size (its content is verified when it is used)."""
        path = self.path(entry.sha256)
        return path.is_file() and path.stat().st_size == entry.size

    def intact(self, entry: FileEntry) -> bool:
        """Whether the blob is stored with the right content; a damaged one is deleted."""
        path = self.path(entry.sha256)
        try:
            with path.open("rb") as stream:
                read = os.fstat(stream.fileno())
                whole = read.st_size == entry.size
                if whole and hashlib.file_digest(stream, "sha256").hexdigest() == entry.sha256:
                    return True
        except FileNotFoundError:
            return False
        with contextlib.suppress(FileNotFoundError):
            if os.path.samestat(path.stat(), read):  # else another writer has put a good one there meanwhile
                path.unlink()
        return False

    def digests(self) -> list[str]:
        """All stored digests, sorted."""
        return sorted(p.name for p in self.folder.glob("??/*") if len(p.name) == 64) if self.folder.is_dir() else []

    def part(self, sha256: str) -> Path:
        """A new place for the unfinished content of a blob, beside its own: what dies there is removed by gc."""
        target = self.path(sha256)
        target.parent.mkdir(parents=True, exist_ok=True)
        return target.with_name(f"{uuid.uuid4().hex}.part")

    def settle(self, part: Path, sha256: str, *, verified: bool = False) -> None:
        """Give finished content its name in one step; CheckpointError when it is not that of the digest.

        `verified`: the caller has compared the digest while it wrote the part. What was fetched is not forced to
        the disk: should a power cut damage it, that is found on use, and it is fetched again.
        """
        if not verified and file_digest(part) != sha256:
            part.unlink(missing_ok=True)
            raise CheckpointError(f"blob {sha256[:12]} was damaged on its way: its content has another digest")
        self._name(part, sha256, flushed=False)

    def _name(self, part: Path, sha256: str, *, flushed: bool = True) -> None:
        part.chmod(0o444)
        if flushed:
            flush(part)
        self.path(sha256).parent.mkdir(parents=True, exist_ok=True)
        os.replace(part, self.path(sha256))

    def put_bytes(self, sha256: str, data: bytes) -> None:
        """Store a blob; CheckpointError when the bytes are not those of the digest."""
        if hashlib.sha256(data).hexdigest() != sha256:
            raise CheckpointError(f"blob {sha256[:12]} was damaged on its way: its content has another digest")
        part = self.part(sha256)
        try:
            part.write_bytes(data)
            self._name(part, sha256)
        finally:
            part.unlink(missing_ok=True)

    def put_file(self, source: Path, entry: FileEntry) -> None:
        """Store a copy of a file, unless the same content is there already, undamaged."""
        if self.intact(entry):
            return
        part = self.part(entry.sha256)
        try:
            shutil.copyfile(source, part)
            if file_digest(part) != entry.sha256:
                raise CheckpointError(f"'{source.name}' changed while it was being published; publish it again")
            self._name(part, entry.sha256)
        finally:
            part.unlink(missing_ok=True)

    def materialise(
        self, manifest: Manifest, folder: Path, *, text: str = "", signature: bytes = b"", verified: bool = False
    ) -> None:
        """Build a pipeline folder from verified blobs: hard links where possible, copies elsewhere.

        `text`: the manifest as its publisher wrote it, byte for byte, as its `signature` (model.sig) needs it.
        """
        for entry in manifest.files:
            if not (self.has(entry) if verified else self.intact(entry)):
                raise CheckpointError(f"blob {entry.sha256[:12]} of '{entry.path}' is missing or damaged")
            self.link(entry, folder / entry.path)
        if signature:
            (folder / SIGNATURE_NAME).write_bytes(signature)
        (folder / MANIFEST_NAME).write_bytes((text or manifest.to_json()).encode())
        flush(folder / MANIFEST_NAME)

    def link(self, entry: FileEntry, target: Path) -> None:
        """Put a blob at `target`, which does not exist yet."""
        target.parent.mkdir(parents=True, exist_ok=True)
        try:
            os.link(self.path(entry.sha256), target)
        except OSError:
            shutil.copyfile(self.path(entry.sha256), target)

    def repair(self, folder: Path) -> None:
        """Put intact blobs in the place of a version's damaged files, each in one step.

        CheckpointError when the folder cannot be made whole so.
        """
        try:
            verify_folder(folder)
        except CheckpointError:
            for entry in read_manifest(folder).files:
                if not self.intact(entry):
                    raise
                part = self.part(entry.sha256)
                self.link(entry, part)
                (folder / entry.path).parent.mkdir(parents=True, exist_ok=True)
                os.replace(part, folder / entry.path)
                part.unlink(missing_ok=True)  # what was whole is the same file, which rename leaves alone
            verify_folder(folder)

    def keep_only(self, sha256s: Iterable[str]) -> None:
        """Delete every blob that is not named."""
        wanted = set(sha256s)
        for digest in self.digests():
            if digest not in wanted:
                self.path(digest).unlink(missing_ok=True)


def read_manifest(folder: Path) -> Manifest:
    """The manifest of a checkpoint folder; CheckpointError when it has none that can be read."""
    try:
        return Manifest.from_json((folder / MANIFEST_NAME).read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError) as error:
        raise CheckpointError(f"'{folder}' is no published checkpoint: {MANIFEST_NAME} cannot be read") from error


def verify_folder(folder: Path) -> Manifest:
    """Check every file of a checkpoint folder by its manifest; CheckpointError names the first wrong one."""
    manifest = read_manifest(folder)
    named = {entry.path for entry in manifest.files}
    for path in sorted(folder.rglob("*")):
        inside = path.relative_to(folder).as_posix()
        if path.is_symlink():
            raise CheckpointError(f"{manifest.reference}: '{inside}' is a symbolic link; publish or fetch it again")
        if inside not in named | RESERVED and not path.is_dir():
            raise CheckpointError(f"{manifest.reference}: '{inside}' was added after it was published; delete it")
    for entry in manifest.files:
        path = folder / entry.path
        if not path.is_file():
            raise CheckpointError(f"{manifest.reference}: '{entry.path}' is missing; publish or fetch it again")
        if file_digest(path) != entry.sha256:
            raise CheckpointError(f"{manifest.reference}: '{entry.path}' was changed; publish or fetch it again")
    return manifest


def write_atomically(path: Path, text: str) -> None:
    """Replace a small text file in one step."""
    path.parent.mkdir(parents=True, exist_ok=True)
    part = path.with_name(f"{path.name}.{uuid.uuid4().hex}.part")
    try:
        part.write_text(text, encoding="utf-8")
        flush(part)
        os.replace(part, path)
    finally:
        part.unlink(missing_ok=True)


def flush(path: Path) -> None:
    """Bring a file's bytes, or a folder's names, to the disk, so that a power cut does not lose them."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
