"""A registry in another folder of this machine, a mounted share for example, as a place to push to and pull from."""

from __future__ import annotations

from contextlib import AbstractContextManager
from pathlib import Path

from fedkd.checkpoints.derivation import Deriver
from fedkd.checkpoints.manifest import FileEntry, Gone, Manifest
from fedkd.checkpoints.registry import Registry
from fedkd.checkpoints.remotes import Count, Remote, disk_words, gone


class LocalRemote(Remote):
    """A registry in a folder: what is pushed to it is a full registry, versions open with diffusers."""

    def __init__(self, url: str) -> None:
        super().__init__(url)
        self.registry = Registry(Path(self.root))

    def has(self, entry: FileEntry) -> bool:
        """Whether the blob is there undamaged."""
        return self.registry.blobs.intact(entry)

    def put_blob(self, source: Path, entry: FileEntry, count: Count) -> None:
        """Copy a file into the blob store, verified."""
        with disk_words(Path(self.root)):
            self.registry.blobs.put_file(source, entry)
        count(entry.size)

    def make(self, manifest: Manifest, entry: FileEntry) -> bool:
        """Make the blob there from its parent's weights and the LoRA file; False when that cannot be done."""
        blobs, parts = self.registry.blobs, self.registry.root / "tmp" / "fetch"

        def nowhere(entry: FileEntry, part: Path) -> None:
            raise gone(self.url, entry)

        part = blobs.part(entry.sha256)
        try:
            with disk_words(Path(self.root)):
                Deriver(manifest, blobs.find, nowhere, parts)(entry, part)
                blobs.settle(part, entry.sha256, verified=True)
        except Gone:
            return False
        finally:
            part.unlink(missing_ok=True)
        return True

    def settle(self, manifest: Manifest, text: bytes, signature: bytes) -> None:
        """Build the version's folder from the blobs and give it its name in one step."""
        with disk_words(Path(self.root)):
            self.registry.install(text.decode(), signature=signature)

    def name(self, name: str, alias: str, version: str) -> None:
        """Point an alias at a version, alone among those who do."""
        self.registry.point(name, alias, version)

    def writing(self) -> AbstractContextManager[None]:
        """Keep garbage collection there away while blobs come in that no version names yet."""
        return self.registry.locks.writing()
