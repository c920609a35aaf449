"""Content-addressed files: each distinct content is stored once, under its sha256."""

from __future__ import annotations

import hashlib
import os
import shutil
import uuid
from collections.abc import Iterable
from pathlib import Path

from fedkd.checkpoints.manifest import MANIFEST_NAME, CheckpointError, FileEntry, Manifest, file_digest


class BlobStore:
    """Blobs below `root`/blobs/sha256/, written atomically and never changed."""

    def __init__(self, root: Path) -> None:
        self.folder = root / "blobs" / "sha256"

    def path(self, sha256: str) -> Path:
        """Where the blob with this digest lies or would lie."""
        return self.folder / sha256[:2] / sha256

    def has(self, entry: FileEntry) -> bool:
        """Whether the blob is stored with the right size (its content is verified when it is used)."""
        path = self.path(entry.sha256)
        return path.is_file() and path.stat().st_size == entry.size

    def digests(self) -> list[str]:
        """All stored digests, sorted."""
        return (
            sorted(p.name for p in self.folder.glob("??/*") if len(p.name) == 64)
            if self.folder.is_dir()
            else []
        )

    def _settle(self, part: Path, sha256: str) -> None:
        part.chmod(0o444)
        os.replace(part, self.path(sha256))

    def _part(self, sha256: str) -> Path:
        target = self.path(sha256)
        target.parent.mkdir(parents=True, exist_ok=True)
        return target.with_name(f"{uuid.uuid4().hex}.part")

    def put_bytes(self, sha256: str, data: bytes) -> None:
        """Store a blob; CheckpointError when the bytes are not those of the digest."""
        if hashlib.sha256(data).hexdigest() != sha256:
            raise CheckpointError(
                f"blob {sha256[:12]} was damaged on its way: its content has another digest"
            )
        part = self._part(sha256)
        part.write_bytes(data)
        self._settle(part, sha256)

    def put_file(self, source: Path, entry: FileEntry) -> None:
        """Store a copy of a file, unless the same content is there already."""
        if self.has(entry):
            return
        part = self._part(entry.sha256)
        try:
            shutil.copyfile(source, part)
            if file_digest(part) != entry.sha256:
                raise CheckpointError(
                    f"'{source.name}' changed while it was being published; publish it again"
                )
            self._settle(part, entry.sha256)
        finally:
            part.unlink(missing_ok=True)

    def materialise(self, manifest: Manifest, folder: Path) -> None:
        """Build a pipeline folder from verified blobs: hard links where possible, copies elsewhere."""
        for entry in manifest.files:
            blob, target = self.path(entry.sha256), folder / entry.path
            if not self.has(entry) or file_digest(blob) != entry.sha256:
                blob.unlink(missing_ok=True)
                raise CheckpointError(f"blob {entry.sha256[:12]} of '{entry.path}' is missing or damaged")
            target.parent.mkdir(parents=True, exist_ok=True)
            try:
                os.link(blob, target)
            except OSError:
                shutil.copyfile(blob, target)
        (folder / MANIFEST_NAME).write_text(manifest.to_json(), encoding="utf-8")

    def keep_only(self, sha256s: Iterable[str]) -> None:
        """Delete every blob that is not named."""
        wanted = set(sha256s)
        for digest in self.digests():
            if digest not in wanted:
                self.path(digest).unlink(missing_ok=True)


def verify_folder(folder: Path) -> Manifest:
    """Check every file of a checkpoint folder by its manifest; CheckpointError names the first wrong one."""
    try:
        manifest = Manifest.from_json((folder / MANIFEST_NAME).read_text(encoding="utf-8"))
    except OSError as error:
        raise CheckpointError(
            f"'{folder}' is no published checkpoint: {MANIFEST_NAME} cannot be read"
        ) from error
    for entry in manifest.files:
        path = folder / entry.path
        if not path.is_file():
            raise CheckpointError(
                f"{manifest.reference}: '{entry.path}' is missing; publish or fetch it again"
            )
        if file_digest(path) != entry.sha256:
            raise CheckpointError(
                f"{manifest.reference}: '{entry.path}' was changed; publish or fetch it again"
            )
    return manifest


def write_atomically(path: Path, text: str) -> None:
    """Replace a small text file in one step."""
    path.parent.mkdir(parents=True, exist_ok=True)
    part = path.with_name(f"{path.name}.{uuid.uuid4().hex}.part")
    part.write_text(text, encoding="utf-8")
    os.replace(part, path)
