"""Versions, lineages and differences of checkpoints as lines of text."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from fedkd.checkpoints.lineage import Ancestor, Difference
    from fedkd.checkpoints.manifest import Manifest
    from fedkd.checkpoints.registry import Registry

HEADINGS = ("VERSION", "SIZE", "NEW", "ROUND", "PARENTS", "NAMES")


def megabytes(size_bytes: int) -> str:
    """A size for people: 1.5 MB."""
    for unit, scale in (("GB", 1e9), ("MB", 1e6), ("kB", 1e3)):
        if size_bytes >= scale:
            return f"{size_bytes / scale:.1f} {unit}"
    return f"{size_bytes} B"


def notes_on(registry: Registry, name: str, version: str) -> str:
    """What points at a version: its aliases and its pin."""
    from fedkd.checkpoints.registry import ALIASES

    found = [alias for alias in ALIASES if registry.alias(name, alias) == version]
    return ", ".join([*found, *["pinned"] * (version in registry.pins(name))])


def table(registry: Registry, names: Sequence[str]) -> list[str]:
    """A line a version: size, bytes that the versions before it lack, round, parents, what points at it."""
    rows: list[tuple[str, ...]] = [HEADINGS]
    for name in names:
        held: set[str] = set()
        for version in registry.versions(name):
            manifest = registry.manifest(f"{name}:{version}")
            new = sum(size for sha256, size in manifest.blobs.items() if sha256 not in held)
            held |= set(manifest.blobs)
            sizes = (megabytes(manifest.size_bytes), megabytes(new))
            parents = ", ".join(manifest.parents) or "-"
            rows.append((manifest.reference, *sizes, str(manifest.round), parents, notes_on(registry, name, version)))
    widths = [max(len(row[column]) for row in rows) for column in range(len(HEADINGS))]
    return ["  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip() for row in rows]


def facts_of(registry: Registry, manifest: Manifest, folder: Path) -> Iterator[str]:
    """What a version is, a fact a line, then its files."""
    metrics = {name: value for name, value in manifest.metrics.items() if isinstance(value, int | float)}
    facts = {
        "version": manifest.reference,
        "names": notes_on(registry, manifest.name, manifest.version),
        "folder": str(folder),
        "created": manifest.created,
        "digest": manifest.digest,
        "signed": "yes" if registry.signature(manifest.reference) else "no",
        "parents": ", ".join(manifest.parents),
        "round": str(manifest.round),
        "edges": ", ".join(manifest.edges),
        "recipe": manifest.recipe_digest,
        "base model": manifest.base_model,
        "licence": manifest.licence,
        "sampling": json.dumps(manifest.sampling) if manifest.sampling else "",
        "metrics": ", ".join(f"{name} {value:.4g}" for name, value in metrics.items()),
        "size": f"{megabytes(manifest.size_bytes)} in {len(manifest.files)} files",
    }
    for name, text in facts.items():
        yield f"{name + ':':<12}{text or '-'}"
    for entry in sorted(manifest.files, key=lambda entry: entry.path):
        yield f"  {entry.sha256[:12]}  {megabytes(entry.size):>9}  {entry.path}"


def step_line(step: Ancestor) -> str:
    """One step of a lineage, indented by its generation."""
    facts = []
    if step.manifest is not None:
        made = step.manifest
        facts += [f"round {made.round}"]
        facts += [f"taught by {', '.join(made.edges)}"] if made.edges else []
        facts += [f"recipe {made.recipe_digest[:12]}"] if made.recipe_digest else []
    if step.state != "here":
        facts.append("removed by gc" if step.state == "collected" else "not in this registry")
    return f"{'  ' * step.depth}{step.reference}  {', '.join(facts)}".rstrip()


def difference(found: Difference) -> Iterator[str]:
    """A line a file that was removed (-), added (+) or changed (~), and the bytes in all."""
    for entry in found.removed:
        yield f"- {entry.path}  {megabytes(entry.size)}"
    for entry in found.added:
        yield f"+ {entry.path}  {megabytes(entry.size)}"
    for old, new in found.changed:
        was = f"{megabytes(old.size)} -> " if old.size != new.size else ""
        yield f"~ {new.path}  {was}{megabytes(new.size)}"
    total = found.new_bytes + found.shared_bytes
    share = f" ({100 * found.new_bytes / total:.1f}%)" if total else ""
    yield (
        f"{found.before.reference} -> {found.after.reference}: {megabytes(found.new_bytes)} of {megabytes(total)} "
        f"differ{share}, {megabytes(found.shared_bytes)} are shared; who holds {found.before.reference} fetches "
        f"{megabytes(found.fetched_bytes)}"
    )
