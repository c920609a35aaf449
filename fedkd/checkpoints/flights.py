"""A model on its way into a cache: its files gather beside the shelf, are checked, then named in one step."""

from __future__ import annotations

import os
import shutil
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from fedkd.checkpoints.blobs import BlobStore, flush
from fedkd.checkpoints.contents import check_folder
from fedkd.checkpoints.derivation import Deriver, Fetch, waves
from fedkd.checkpoints.eviction import ROOM_NAME
from fedkd.checkpoints.manifest import (
    MANIFEST_NAME,
    RESERVED,
    SIGNATURE_NAME,
    CheckpointError,
    FileEntry,
    Manifest,
    file_digest,
)
from fedkd.checkpoints.signing import TrustPolicy, verify

JOBS = 4


class Flight:
    """The folder where a model's files gather, each under its sha256; held by its flight lock.

    What it shares with the store is hard-linked here at once, so that no eviction takes it away.
    """

    def __init__(self, folder: Path, blobs: BlobStore, manifest: Manifest) -> None:
        self.folder, self.blobs, self.manifest = folder, blobs, manifest
        self.entries = list({entry.sha256: entry for entry in manifest.files}.values())

    def gather(self) -> list[FileEntry]:
        """Take what lies here already, from an earlier attempt or in the store; the entries that lack."""
        self.folder.mkdir(parents=True, exist_ok=True)
        return [entry for entry in self.entries if not self._have(entry)]

    def _have(self, entry: FileEntry) -> bool:
        target = self.folder / entry.sha256
        if target.is_file() and file_digest(target) == entry.sha256:
            return True
        target.unlink(missing_ok=True)
        if not self.blobs.intact(entry):
            return False
        self.blobs.link(entry, target)
        return True

    def promise(self, lacking: list[FileEntry]) -> None:
        """Tell other downloads how many bytes will still come."""
        (self.folder / ROOM_NAME).write_text(str(sum(entry.size for entry in lacking)), encoding="ascii")

    def fetch(self, lacking: list[FileEntry], fetch: Fetch) -> int:
        """Bring what lacks, several at once, and return the bytes that came from outside.

        CheckpointError when something else came than was named.
        """
        derive = Deriver(self.manifest, self._find, fetch, self.folder)

        def bring(entry: FileEntry) -> None:
            part = self.folder / f"{entry.sha256}.part"
            derive(entry, part)
            if part.stat().st_size != entry.size or file_digest(part) != entry.sha256:
                part.unlink()
                raise CheckpointError(
                    f"blob {entry.sha256[:12]} of '{entry.path}' was damaged on its way: its content has another digest"
                )
            os.replace(part, self.folder / entry.sha256)

        with ThreadPoolExecutor(JOBS) as pool:
            for wave in waves(self.manifest, lacking):
                list(pool.map(bring, wave))
        derive.clear()
        return derive.fetched_bytes

    def _find(self, sha256: str) -> Path | None:
        own = self.folder / sha256
        return own if own.is_file() else self.blobs.find(sha256)

    def build(self, text: str, signature: bytes, policy: TrustPolicy) -> Path:
        """The model's folder inside this one, checked by content and signature; CheckpointError when it is refused."""
        if Manifest.from_json(text) != self.manifest:
            raise CheckpointError(f"the text of {self.manifest.reference}'s manifest is another's; fetch it again")
        build = self.folder / "build"
        shutil.rmtree(build, ignore_errors=True)
        for entry in self.manifest.files:
            target = build / entry.path
            target.parent.mkdir(parents=True, exist_ok=True)
            try:
                os.link(self.folder / entry.sha256, target)
            except OSError:  # a file system without hard links
                shutil.copyfile(self.folder / entry.sha256, target)
        if signature:
            (build / SIGNATURE_NAME).write_bytes(signature)
        (build / MANIFEST_NAME).write_bytes(text.encode())
        check_folder(build, self.manifest)
        verify(build, policy)
        return build

    def settle(self, build: Path, folder: Path) -> None:
        """Give blobs and folder their names; a damaged folder that is there gets each good file in one step."""
        for entry in self.entries:
            if not self.blobs.has(entry):
                (self.folder / entry.sha256).chmod(0o444)
                flush(self.folder / entry.sha256)
                self.blobs.path(entry.sha256).parent.mkdir(parents=True, exist_ok=True)
                os.replace(self.folder / entry.sha256, self.blobs.path(entry.sha256))
        flush(build / MANIFEST_NAME)
        folder.parent.mkdir(parents=True, exist_ok=True)
        if not folder.exists():
            build.rename(folder)
            flush(folder.parent)
            return
        wanted = [entry.path for entry in self.manifest.files] + sorted(RESERVED & set(os.listdir(build)))
        for path in list(folder.rglob("*")):  # a link or a file in a place that is not its own
            inside = path.relative_to(folder).as_posix()
            if path.is_symlink() or (not path.is_dir() and inside not in wanted):
                path.unlink()
        for name in wanted:
            (folder / name).parent.mkdir(parents=True, exist_ok=True)
            os.replace(build / name, folder / name)

    def discard(self) -> None:
        """Delete what gathered."""
        shutil.rmtree(self.folder, ignore_errors=True)
