"""Versions published by a small registry, and the ways a test brings them to a cache."""

from __future__ import annotations

import threading
import time
from dataclasses import dataclass, field
from pathlib import Path

from fedkd.checkpoints.cache import CheckpointCache
from fedkd.checkpoints.manifest import MANIFEST_NAME, FileEntry, Manifest
from fedkd.checkpoints.registry import Registry
from fedkd.checkpoints.signing import sign
from tests.checkpoints.folders import make_model


@dataclass
class Source:
    """A registry below `root` that hands out blobs and counts them."""

    root: Path
    key: Path | None = None
    delay_s: float = 0.0
    sent: list[str] = field(default_factory=list)
    lock: threading.Lock = field(default_factory=threading.Lock)

    @property
    def registry(self) -> Registry:
        """The registry itself."""
        return Registry(self.root / "registry")

    def publish(self, unet: str, *, name: str = "m", vae: str = "vae", size_bytes: int = 2000) -> Manifest:
        """The next version of `name` with weights made from these texts, signed when there is a key."""
        folder = make_model(self.root / "model", unet, vae, size_bytes)
        key = self.key
        return self.registry.publish(folder, name=name, sign=None if key is None else lambda made: sign(made, key))

    def text(self, manifest: Manifest) -> str:
        """The manifest as it was published."""
        return (self.registry.folder(manifest.reference) / MANIFEST_NAME).read_text()

    def fetch(self, entry: FileEntry, part: Path) -> None:
        """Bring one blob, counting it."""
        with self.lock:
            self.sent.append(entry.sha256)
        time.sleep(self.delay_s)
        part.write_bytes(self.registry.blobs.path(entry.sha256).read_bytes())

    def activate(self, cache: CheckpointCache, manifest: Manifest) -> Path:
        """Bring a version to a cache, its manifest as published and its signature with it."""
        signature = self.registry.signature(manifest.reference)
        return cache.activate(manifest, text=self.text(manifest), signature=signature, fetch=self.fetch)


SIZE = 100_000


def bounded(cache: CheckpointCache, models: float) -> CheckpointCache:
    """The cache with room for so many models of two weights of SIZE bytes each."""
    return CheckpointCache(cache.root, max_bytes=int(models * 2 * SIZE))


def several(source: Source, count: int) -> list[Manifest]:
    """So many models that share nothing but model_index.json, two weights of SIZE bytes each."""
    return [source.publish(f"u{n}", name=f"m{n}", vae=f"v{n}", size_bytes=SIZE) for n in range(count)]


def obtain(cache: CheckpointCache, source: Source, manifest: Manifest) -> Path:
    """Bring a version to a cache without serving it."""
    return cache.obtain(manifest, text=source.text(manifest), fetch=source.fetch)
