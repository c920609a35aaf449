"""What the registry benchmark knows by itself of what was published, to hold against what it finds."""

from __future__ import annotations

import hashlib
import json
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from fedkd.cli.benchmarks.registry_faults import NAME

if TYPE_CHECKING:
    from fedkd.checkpoints.blobs import BlobStore
    from fedkd.checkpoints.registry import Registry


def make_model(folder: Path, dice: np.random.Generator, sizes: dict[str, int], *, only: str = "") -> None:
    """A diffusers folder with random safetensors; with `only` just that part of it gets new weights."""
    from safetensors.numpy import save

    for part, size in sizes.items():
        if only in ("", part):
            path = folder / part / "diffusion_pytorch_model.safetensors"
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(save({"w": dice.integers(0, 256, size, dtype=np.uint8)}))
    (folder / "model_index.json").write_text(json.dumps({"_class_name": "StableDiffusionPipeline"}))


@dataclass
class Ledger:
    """What the benchmark knows by itself of one registry: what was published there, and what may be gone."""

    published: dict[str, dict[str, str]] = field(default_factory=dict)  # reference: {path: sha256}
    spared: set[str] = field(default_factory=set)  # references that a gc was allowed to remove

    def add(self, reference: str, folder: Path) -> None:
        """`reference` was published from, or pulled as, the content of `folder`."""
        self.published[reference] = contents(folder)
        self.spared.discard(reference)


@dataclass
class Damage:
    """What must stay zero: versions that load and are wrong, published ones that are gone, repairs that fail."""

    corrupt: int = 0
    lost: int = 0
    stuck: int = 0


def contents(folder: Path) -> dict[str, str]:
    """{path: sha256} of a model's files, read anew."""
    return {
        path.relative_to(folder).as_posix(): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in sorted(folder.rglob("*"))
        if path.is_file() and path.name not in ("manifest.json", "model.sig")
    }


def look_at(registry: Registry, ledger: Ledger, found: Damage) -> None:
    """Count versions that load and are wrong, and published ones that do not load."""
    from fedkd.checkpoints.manifest import CheckpointError

    there = {f"{NAME}:{version}" for version in registry.versions(NAME)}
    for reference in there:
        try:
            folder = registry.resolve(reference)
        except CheckpointError:
            found.corrupt += 1  # half a version under a final name
            continue
        wrong = reference in ledger.published and contents(folder) != ledger.published[reference]
        found.corrupt += wrong or not sound(folder)
    found.lost += len(set(ledger.published) - ledger.spared - there)
    for reference in ledger.spared - there:
        ledger.published.pop(reference, None)
    ledger.spared &= there
    latest = registry.alias(NAME, "latest")
    found.lost += bool(there) and bool(latest) and f"{NAME}:{latest}" not in there


def sound(folder: Path) -> bool:
    """Whether a folder's files are those of its manifest, by our own reading."""
    from fedkd.checkpoints.manifest import Manifest

    manifest = Manifest.from_json((folder / "manifest.json").read_text("utf-8"))
    return contents(folder) == {entry.path: entry.sha256 for entry in manifest.files}


def needed_by(registry: Registry) -> set[str]:
    """What gc must keep, by our own reckoning: the root, latest, its parent, and pins."""
    kept = {f"{NAME}:{version}" for version in registry.pins(NAME)}
    for version in registry.versions(NAME):
        path = registry.root / "versions" / NAME / version / "manifest.json"
        facts = json.loads(path.read_text("utf-8")) if path.is_file() else {"parents": []}
        if version == registry.alias(NAME, "latest"):
            kept |= {f"{NAME}:{version}", *facts["parents"]}
        if not facts["parents"]:
            kept.add(f"{NAME}:{version}")
    return kept


def spoil(store: BlobStore, sha256: str, place: int, *, cut: bool) -> str:
    """Cut a blob off at `place`, or flip a bit there; which of both."""
    path = store.path(sha256)
    path.chmod(0o644)
    with path.open("r+b") as stream:
        if cut:
            stream.truncate(place)
            return "cut short"
        stream.seek(place)
        byte = stream.read(1)[0]
        stream.seek(place)
        stream.write(bytes([byte ^ 1]))
    return "bit flipped"
