"""A node's cache: the checkpoint it works with, refreshed by digest and swapped atomically."""

from __future__ import annotations

import contextlib
import shutil
import uuid
from pathlib import Path

from fedkd.checkpoints.blobs import BlobStore, verify_folder, write_atomically
from fedkd.checkpoints.manifest import CheckpointError, FileEntry, Manifest, file_digest


class CheckpointCache:
    """Checkpoints below `root`: blobs/, versions/DIGEST/ and the name of the current one."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self.blobs = BlobStore(root)

    @property
    def digest(self) -> str:
        """Digest of the current checkpoint; empty when there is none."""
        path = self.root / "current"
        return path.read_text(encoding="utf-8").strip() if path.is_file() else ""

    def path(self) -> Path:
        """The verified folder of the current checkpoint."""
        if not self.digest:
            raise CheckpointError("the cache holds no checkpoint yet; the node has to be refreshed first")
        folder = self.root / "versions" / self.digest
        verify_folder(folder)
        return folder

    def held(self) -> list[str]:
        """Digests of all undamaged blobs, sorted; a damaged one is deleted so that it is fetched again."""
        for sha256 in self.blobs.digests():
            if file_digest(self.blobs.path(sha256)) != sha256:
                self.blobs.path(sha256).unlink(missing_ok=True)
        return self.blobs.digests()

    def missing(self, manifest: Manifest) -> list[FileEntry]:
        """The files of `manifest` whose content has to be fetched, each content once."""
        lacking = {entry.sha256: entry for entry in manifest.files if not self.blobs.has(entry)}
        return list(lacking.values())

    def put(self, sha256: str, data: bytes) -> None:
        """Store a fetched blob; CheckpointError when it is damaged."""
        self.blobs.put_bytes(sha256, data)

    def activate(self, manifest: Manifest) -> Path:
        """Make `manifest` current in one step; the checkpoint before stays for requests in flight."""
        before, folder = self.digest, self.root / "versions" / manifest.digest
        if not folder.is_dir():
            part = self.root / "tmp" / f"{uuid.uuid4().hex}.part"
            part.mkdir(parents=True)
            try:
                self.blobs.materialise(manifest, part)
                folder.parent.mkdir(parents=True, exist_ok=True)
                part.rename(folder)
            finally:
                shutil.rmtree(part, ignore_errors=True)
        try:
            verify_folder(folder)
        except CheckpointError:
            shutil.rmtree(
                folder, ignore_errors=True
            )  # never served again; the next refresh fetches what lacks
            raise
        write_atomically(self.root / "current", manifest.digest)
        self._prune({manifest.digest, before})
        return folder

    def _prune(self, keep: set[str]) -> None:
        """Drop checkpoints that are neither current nor the one before, and blobs nobody needs."""
        wanted: set[str] = set()
        for folder in (self.root / "versions").iterdir():
            if folder.name in keep:
                with contextlib.suppress(CheckpointError):
                    wanted |= {entry.sha256 for entry in verify_folder(folder).files}
            else:
                shutil.rmtree(folder, ignore_errors=True)
        self.blobs.keep_only(wanted)
