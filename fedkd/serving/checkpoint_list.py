"""The checkpoints that an edge serves, holds or knows of, with what they scored and what they descend from."""

from __future__ import annotations

import contextlib
import math
from collections.abc import Iterable, Iterator
from typing import Literal

from pydantic import BaseModel

from fedkd.checkpoints.blobs import read_manifest
from fedkd.checkpoints.cache import CheckpointCache
from fedkd.checkpoints.lineage import known
from fedkd.checkpoints.manifest import CheckpointError, Manifest
from fedkd.checkpoints.registry import ALIASES, Registry
from fedkd.serving.models import EdgeModels, Served
from fedkd.serving.sources import CloudSource, RegistrySource, Source

MOST = 200  # entries of one answer, the newest of each source first
State = Literal["here", "collected", "elsewhere"]
Names = dict[tuple[str, str], list[str]]  # (reference, digest) to the names it is served under


class Checkpoint(BaseModel):
    """One version; `state` is here, collected (its files are gone) or elsewhere (only named as a parent).

    `served_as` are the names under which the edge serves it now. What is not known is empty.
    """

    reference: str
    digest: str = ""
    state: State
    served_as: list[str] = []
    aliases: list[str] = []
    created: str = ""
    round: int = 0
    parents: list[str] = []
    edges: list[str] = []
    metrics: dict[str, float] = {}
    base_model: str = ""
    licence: str = ""
    size_bytes: int = 0


class CheckpointList(BaseModel):
    """Versions, the newest first; `left_off` is how many more there are at least."""

    object: Literal["list"] = "list"
    data: list[Checkpoint]
    left_off: int = 0


def checkpoint_list(models: EdgeModels) -> CheckpointList:
    """What the sources of the served models hold, and the parents they name; reads manifests only, no weights."""
    found: dict[str, Checkpoint] = {}
    names: Names = {}
    for served in models.current():
        manifest = _manifest(served)
        if manifest is not None:
            names.setdefault((manifest.reference, manifest.digest), []).append(served.name)
        entry = _entry(manifest, "here", names) if manifest else _unpublished(served)
        found[entry.reference] = entry
    for entry in _held(models.sources().values(), names):
        found[entry.reference] = entry
    named = {parent for entry in found.values() for parent in entry.parents}
    for parent in sorted(named - found.keys()):
        found[parent] = Checkpoint(reference=parent, state="elsewhere")
    entries = list(found.values())
    return CheckpointList(data=entries[:MOST], left_off=max(0, len(entries) - MOST))


def _manifest(served: Served) -> Manifest | None:
    try:
        return read_manifest(served.folder)
    except CheckpointError:  # a folder that was never published
        return None


def _held(sources: Iterable[Source], names: Names) -> Iterator[Checkpoint]:
    asked: set[str] = set()
    for source in sources:
        if isinstance(source, RegistrySource):
            name = source.reference.partition(":")[0]
            place = f"{source.registry.root}:{name}"
            held = _of_registry(source.registry, name, names)
        elif isinstance(source, CloudSource):
            place = str(source.cache.root)
            held = _of_cache(source.cache, names)
        else:
            continue
        if place not in asked:
            asked.add(place)
            yield from held


def _unpublished(served: Served) -> Checkpoint:
    return Checkpoint(
        reference=f"{served.name}:{served.version}" if served.version else served.name,
        digest=served.digest,
        state="here",
        served_as=[served.name],
        size_bytes=sum(file.size_bytes for file in served.files),
    )


def _of_registry(registry: Registry, name: str, names: Names) -> Iterator[Checkpoint]:
    """The versions of a name and all they descend from, nearest first."""
    waiting = [f"{name}:{version}" for version in reversed(registry.versions(name))]
    seen: set[str] = set()
    while waiting and len(seen) <= MOST:
        reference = waiting.pop(0)
        manifest = None if reference in seen else known(registry, reference)
        seen.add(reference)
        if manifest is None:
            continue
        here = manifest.version in registry.versions(manifest.name)
        entry = _entry(manifest, "here" if here else "collected", names)
        entry.aliases = [alias for alias in ALIASES if registry.alias(manifest.name, alias) == manifest.version]
        yield entry
        waiting += manifest.parents


def _of_cache(cache: CheckpointCache, names: Names) -> Iterator[Checkpoint]:
    """The models of an edge's cache, the one used last first."""
    for digest in reversed(cache.shelf.held()):
        with contextlib.suppress(CheckpointError):  # evicted meanwhile, or damaged
            yield _entry(read_manifest(cache.shelf.folder(digest)), "here", names)


def _entry(manifest: Manifest, state: State, names: Names) -> Checkpoint:
    return Checkpoint(
        reference=manifest.reference,
        digest=manifest.digest,
        state=state,
        served_as=names.get((manifest.reference, manifest.digest), []),
        created=manifest.created,
        round=manifest.round,
        parents=list(manifest.parents),
        edges=list(manifest.edges),
        metrics={
            name: float(value)
            for name, value in manifest.metrics.items()
            if isinstance(value, int | float) and math.isfinite(value)
        },
        base_model=manifest.base_model,
        licence=manifest.licence,
        size_bytes=manifest.size_bytes,
    )
