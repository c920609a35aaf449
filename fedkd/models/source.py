"""Where a model comes from: a name that ships with fedkd, a diffusers folder, or a hub id. Imports nothing heavy."""

from __future__ import annotations

from pathlib import Path

SHIPPED = Path(__file__).resolve().parents[2] / "checkpoints"


class ModelError(ValueError):
    """A model folder or hub id that cannot be loaded."""


def resolve_model(path: str) -> str:
    """An absolute folder for a shipped name ('tiny-sd') or a local folder; a hub id stays as it is."""
    if not path:
        raise ModelError("model.path is empty; give 'tiny-sd', a diffusers folder or a hub id")
    if (SHIPPED / path / "model_index.json").is_file():
        return str(SHIPPED / path)
    folder = Path(path).expanduser()
    if folder.is_dir():
        if not (folder / "model_index.json").is_file():
            raise ModelError(f"model.path={path} has no model_index.json; give a diffusers pipeline folder")
        return str(folder.resolve())
    if path.count("/") == 1 and not path.startswith((".", "/", "~")):
        return path
    raise ModelError(f"model.path={path} does not exist; give 'tiny-sd', a diffusers folder or a hub id 'owner/name'")
