"""The files of a model that an edge offers: content digests, and the facts a device needs to use them."""

from __future__ import annotations

import hashlib
import json
from dataclasses import asdict, dataclass
from pathlib import Path

SUFFIXES = (".json", ".safetensors", ".txt", ".model")


@dataclass(frozen=True)
class ComponentFile:
    """One file of a model folder: `component` is the subfolder ('' for model_index.json)."""

    component: str
    name: str
    sha256: str
    size_bytes: int


def file_digest(path: Path) -> str:
    """sha256 of a file's content, in hexadecimal."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def component_files(folder: Path) -> list[ComponentFile]:
    """The files of a diffusers folder that make up the model, in a fixed order; no variants, no pickles."""
    index = json.loads((folder / "model_index.json").read_text(encoding="utf-8"))
    names = sorted(
        name
        for name, made in index.items()
        if not name.startswith("_") and isinstance(made, list) and made[0] is not None
    )
    paths = [folder / "model_index.json"]
    for name in names:
        if (folder / name).is_dir():
            paths += sorted(path for path in (folder / name).iterdir() if _belongs(path))
    return [
        ComponentFile(
            component="" if path.parent == folder else path.parent.name,
            name=path.name,
            sha256=file_digest(path),
            size_bytes=path.stat().st_size,
        )
        for path in paths
    ]


def _belongs(path: Path) -> bool:
    if path.suffix not in SUFFIXES or not path.is_file():
        return False
    return not (path.suffix == ".safetensors" and "." in path.stem)  # a variant such as model.fp16.safetensors


def model_digest(files: list[ComponentFile]) -> str:
    """One sha256 for a model: over the names and digests of its files."""
    listed = [asdict(file) for file in files]
    return hashlib.sha256(json.dumps(listed, sort_keys=True).encode()).hexdigest()
