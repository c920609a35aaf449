"""Where a served model comes from: a plain folder, a registry on this machine, or the cloud's through a cache."""

from __future__ import annotations

import logging
from collections.abc import Callable
from contextlib import ExitStack, closing
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

import diffusers

from fedkd.checkpoints.cache import CheckpointCache
from fedkd.checkpoints.manifest import MANIFEST_NAME, CheckpointError, Manifest
from fedkd.checkpoints.registry import ALIASES, Registry
from fedkd.checkpoints.remotes import open_remote
from fedkd.checkpoints.signing import TrustPolicy, verify
from fedkd.checkpoints.transfer import find, pull
from fedkd.models.source import resolve_model

log = logging.getLogger("fedkd.serving")


@dataclass(frozen=True)
class Brought:
    """A model's folder on this machine; `tag` tells versions apart, `release` gives the folder free."""

    folder: Path
    tag: str
    release: Callable[[], None] = lambda: None


class Source(Protocol):
    """Where the versions of one model come from."""

    @property
    def moves(self) -> bool:
        """Whether a newer version can come."""
        ...

    def tag(self) -> str:
        """The tag of the newest version; CheckpointError or OSError when that cannot be known."""
        ...

    def bring(self) -> Brought:
        """The newest version's folder, kept until it is released; CheckpointError or ModelError."""
        ...


@dataclass(frozen=True)
class FolderSource:
    """A diffusers folder, a shipped name or a hub id; it stays as it is."""

    checkpoint: str
    moves: bool = False

    def tag(self) -> str:
        """The checkpoint itself."""
        return self.checkpoint

    def bring(self) -> Brought:
        """The folder; for a hub id its cached or fetched snapshot."""
        source = resolve_model(self.checkpoint)
        if not Path(source).is_dir():
            source = str(diffusers.DiffusionPipeline.download(source, use_safetensors=True))
        return Brought(Path(source), self.checkpoint)


@dataclass(frozen=True)
class RegistrySource:
    """`name[:version|alias]` in a registry on this machine."""

    registry: Registry
    reference: str
    policy: TrustPolicy | None = None

    @property
    def moves(self) -> bool:
        """Whether the reference is an alias."""
        return _moves(self.reference)

    def tag(self) -> str:
        """The digest of the version that is meant now."""
        return self.registry.manifest(self.reference).digest

    def bring(self) -> Brought:
        """The verified folder of that version."""
        folder = self.registry.resolve(self.reference)
        if self.policy is not None and (self.policy.require_signature or self.policy.trusts_anyone):
            verify(folder, self.policy)
        return Brought(folder, Manifest.from_json((folder / MANIFEST_NAME).read_text("utf-8")).digest)


@dataclass(frozen=True)
class CloudSource:
    """`name[:version|alias]` in the registry at `url`, pulled into an edge's cache."""

    url: str
    reference: str
    cache: CheckpointCache
    token: str = ""

    @property
    def moves(self) -> bool:
        """Whether the reference is an alias."""
        return _moves(self.reference)

    def tag(self) -> str:
        """The digest of the version that the cloud means now."""
        with closing(open_remote(self.url, token=self.token)) as remote:
            return find(remote, self.reference).manifest.digest

    def bring(self) -> Brought:
        """The version, pulled where the cache misses it; the cached one when the cloud cannot be asked."""
        held, name = ExitStack(), self.reference.partition(":")[0]
        try:
            pull(self.reference, self.url, self.cache, token=self.token)
            folder = held.enter_context(self.cache.lease(name))
        except (CheckpointError, OSError) as error:
            try:
                folder = held.enter_context(self.cache.lease(name))
            except CheckpointError:
                raise error from None
            log.warning("%s cannot be pulled (%s); serving what the cache holds", self.reference, error)
        return Brought(folder, folder.name, held.close)


def source_of(checkpoint: str, registry: str = "", cache: str = "", token: str = "") -> Source:
    """Where `checkpoint` comes from: itself, or `name[:version|alias]` in `registry`, a folder or URL.

    With `cache` (a folder) it is pulled into that; a registry on this machine can be served without one.
    """
    if not registry:
        return FolderSource(checkpoint)
    if cache:
        return CloudSource(registry, checkpoint, CheckpointCache(Path(cache)), token)
    if "://" in registry:
        raise CheckpointError(f"registry={registry} is not on this machine; give a cache to pull into")
    return RegistrySource(Registry(Path(registry)), checkpoint)


def _moves(reference: str) -> bool:
    version = reference.partition(":")[2]
    return not version or version in ALIASES
