"""Where a checkpoint comes from, and in which bytes two of them differ."""

from __future__ import annotations

from dataclasses import dataclass

from fedkd.checkpoints.derivation import to_fetch
from fedkd.checkpoints.manifest import CheckpointError, FileEntry, Manifest
from fedkd.checkpoints.registry import Registry


@dataclass(frozen=True)
class Ancestor:
    """One step of a lineage: `depth` generations back; `state` is here, collected (by gc) or elsewhere."""

    reference: str
    depth: int
    state: str
    manifest: Manifest | None


def lineage(registry: Registry, reference: str) -> list[Ancestor]:
    """A version and all it descends from, nearest first, each once; those that gc removed are told too."""
    found: list[Ancestor] = []
    waiting, seen = [(registry.manifest(reference).reference, 0)], set()
    while waiting:
        now, depth = waiting.pop(0)
        if now in seen:
            continue
        seen.add(now)
        manifest = known(registry, now)
        state = "elsewhere"
        if manifest is not None:
            state = "here" if manifest.version in registry.versions(manifest.name) else "collected"
        found.append(Ancestor(now, depth, state, manifest))
        waiting += [(parent, depth + 1) for parent in (manifest.parents if manifest else ())]
    return found


def known(registry: Registry, reference: str) -> Manifest | None:
    """The manifest of a parent as its child names it; None when this registry never had it."""
    try:
        return registry.remembered(reference)
    except CheckpointError:
        return None


@dataclass(frozen=True)
class Difference:
    """What `after` has that `before` has not: files by path, and bytes of contents (each content once)."""

    before: Manifest
    after: Manifest
    added: tuple[FileEntry, ...]
    removed: tuple[FileEntry, ...]
    changed: tuple[tuple[FileEntry, FileEntry], ...]

    @property
    def new_bytes(self) -> int:
        """Bytes of `after` that `before` does not have."""
        return sum(size for sha256, size in self.after.blobs.items() if sha256 not in self.before.blobs)

    @property
    def fetched_bytes(self) -> int:
        """Bytes that somebody who holds `before` has to fetch for `after`: a LoRA file stands for what it gives."""
        return sum(entry.size for entry in to_fetch(self.after, self.before.blobs))

    @property
    def shared_bytes(self) -> int:
        """Bytes of `after` that `before` has too."""
        return sum(self.after.blobs.values()) - self.new_bytes


def diff(registry: Registry, before: str, after: str) -> Difference:
    """Files and bytes in which two versions differ, by their manifests."""
    one, two = registry.manifest(before), registry.manifest(after)
    old, new = ({entry.path: entry for entry in manifest.files} for manifest in (one, two))
    return Difference(
        one,
        two,
        tuple(new[path] for path in sorted(new.keys() - old.keys())),
        tuple(old[path] for path in sorted(old.keys() - new.keys())),
        tuple(
            (old[path], new[path]) for path in sorted(old.keys() & new.keys()) if old[path].sha256 != new[path].sha256
        ),
    )
