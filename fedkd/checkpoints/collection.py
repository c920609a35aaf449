"""Garbage collection: removes the versions and blobs that no name, pin or lineage root needs."""

from __future__ import annotations

import contextlib
import os
import shutil
import uuid
from dataclasses import dataclass
from pathlib import Path

from fedkd.checkpoints.blobs import write_atomically
from fedkd.checkpoints.locks import WAIT_S
from fedkd.checkpoints.manifest import MANIFEST_NAME, CheckpointError, Manifest
from fedkd.checkpoints.names import before
from fedkd.checkpoints.registry import ALIASES, Registry


@dataclass(frozen=True)
class Collected:
    """What gc removed, or would remove: versions, number of blobs, leftovers of killed writers, bytes freed."""

    versions: tuple[str, ...]
    blobs: int
    leftovers: int
    freed_bytes: int
    kept: dict[str, str]


def needed(registry: Registry) -> dict[str, str]:
    """{name:version: why} of all versions that have to stay.

    They are those that an alias points at, the one that `rollback` would go to, those that are pinned, and the
    roots of lineage: versions without parents.
    """
    reasons: dict[str, str] = {}
    for name in registry.names():
        for version in registry.versions(name):
            if not registry.manifest(f"{name}:{version}").parents:
                reasons[f"{name}:{version}"] = "root"
        for version in registry.pins(name):
            reasons[f"{name}:{version}"] = "pinned"
        if registry.alias(name, "latest") in registry.versions(name):
            with contextlib.suppress(CheckpointError):  # nothing to go back to
                reasons[f"{name}:{before(registry, name)}"] = "for rollback"
        for alias in ALIASES:
            version = registry.alias(name, alias) or ""
            if version in registry.versions(name):
                reasons[f"{name}:{version}"] = alias
    return reasons


def collect(registry: Registry, *, dry_run: bool = False, wait_s: float = WAIT_S) -> Collected:
    """Remove what nobody needs, when no writer is at work (waits `wait_s` seconds for each).

    Killed at any point it leaves a registry that is whole; the next collection goes on. A version whose manifest
    cannot be read stops it: what such a version needs is not known.
    """
    if not registry.root.is_dir():
        raise CheckpointError(f"there is no registry at '{registry.root}'; give the folder of one")
    with registry.locks.collecting(wait_s):
        kept = needed(registry)
        doomed, wanted, held = [], set(), set()
        for name in registry.names():
            for version in registry.versions(name):
                manifest = registry.manifest(f"{name}:{version}")
                held |= set(manifest.blobs)
                if manifest.reference in kept:
                    wanted |= set(manifest.blobs)
                else:
                    doomed.append(manifest)
        stored, left = registry.blobs.digests(), leftovers(registry.root)
        orphans = [registry.blobs.path(sha256) for sha256 in stored if sha256 not in held]
        released = [registry.blobs.path(sha256) for sha256 in stored if sha256 in held - wanted]
        freed = sum(size_of(path) for path in [*orphans, *released, *left])
        result = Collected(
            tuple(manifest.reference for manifest in doomed), len(orphans) + len(released), len(left), freed, kept
        )
        if not dry_run:
            for path in [*left, *orphans]:  # first what frees space and needs none
                remove(path)
            for manifest in doomed:
                retire(registry, manifest)
            for path in released:
                remove(path)
    return result


def retire(registry: Registry, manifest: Manifest) -> None:
    """Take a version away in one step; its manifest is remembered, by a link that needs no space."""
    folder = registry.root / "versions" / manifest.name / manifest.version
    memory = registry.root / "collected" / manifest.name / f"{manifest.version}.json"
    gone = registry.root / "tmp" / f"{uuid.uuid4().hex}.gone"
    for path in (memory, gone):
        path.parent.mkdir(parents=True, exist_ok=True)
    if not memory.exists():
        try:
            os.link(folder / MANIFEST_NAME, memory)
        except OSError:
            write_atomically(memory, (folder / MANIFEST_NAME).read_text(encoding="utf-8"))
    folder.rename(gone)
    shutil.rmtree(gone)


def leftovers(root: Path) -> list[Path]:
    """What writers that were killed left: unfinished blobs, versions and texts."""
    places = (
        "tmp/*",
        "versions/*/.*.part",
        "blobs/sha256/??/*.part",
        "names/*/*.part",
        "pins/*/*.part",
        "collected/*/*.part",
    )
    return [path for place in places for path in root.glob(place)]


def size_of(path: Path) -> int:
    """Bytes that vanish with a file or folder: those that no other name of the same file keeps."""
    files = [path] if path.is_file() else [inside for inside in path.rglob("*") if inside.is_file()]
    return sum(file.stat().st_size for file in files if path.parent.name != "tmp" or file.stat().st_nlink == 1)


def remove(path: Path) -> None:
    """Delete a file or a whole folder."""
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)
