"""Moving names over versions: pins against gc, and `latest` back to an earlier version."""

from __future__ import annotations

from fedkd.checkpoints.blobs import verify_folder, write_atomically
from fedkd.checkpoints.manifest import CheckpointError, check_version
from fedkd.checkpoints.registry import ALIASES, Registry


def pin(registry: Registry, reference: str) -> str:
    """Keep a version from gc until it is unpinned; returns `name:version`."""
    with registry.locks.writing():
        found = registry.manifest(reference)
        write_atomically(registry.root / "pins" / found.name / found.version, "")
    return found.reference


def unpin(registry: Registry, reference: str) -> str:
    """Undo `pin`; CheckpointError when the version is not pinned."""
    name, _, version = reference.partition(":")
    version = registry.folder(reference).name if version in ("", *ALIASES) else check_version(version)
    if version not in registry.pins(name):
        pinned = ", ".join(registry.pins(name)) or "none"
        raise CheckpointError(f"'{name}:{version}' is not pinned; pinned versions of '{name}': {pinned}")
    (registry.root / "pins" / name / version).unlink(missing_ok=True)
    return f"{name}:{version}"


def rollback(registry: Registry, name: str, version: str = "") -> tuple[str, str]:
    """Point `latest` at another version (default: the one before it), once verified; (before, after)."""
    now = registry.alias(name, "latest") or "none"
    target = registry.folder(f"{name}:{version or before(registry, name)}")
    verify_folder(target)
    registry.point(name, "latest", target.name)
    return now, target.name


def before(registry: Registry, name: str) -> str:
    """The version that `rollback` goes to: the first parent of `latest` that is here under this name."""
    latest = registry.manifest(name)
    for parent in latest.parents:
        parent_name, _, version = parent.partition(":")
        if parent_name == name and version in registry.versions(name):
            return version
    known = ", ".join(registry.versions(name))
    raise CheckpointError(
        f"{latest.reference} has no parent in '{registry.root}' to go back to; name one of its versions: {known}"
    )
