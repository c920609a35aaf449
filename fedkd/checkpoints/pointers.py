"""Small files that name the version in use: read, and moved together."""

from __future__ import annotations

import os
import uuid
from collections.abc import Sequence
from pathlib import Path

from fedkd.checkpoints.blobs import flush


def read_pointer(path: Path) -> str:
    """What the file names; empty when there is no file."""
    try:
        return path.read_text(encoding="utf-8").strip()
    except (FileNotFoundError, NotADirectoryError):
        return ""


def point(paths: Sequence[Path], text: str) -> None:
    """Make each of the files name `text`; on a full disk none is changed: all lie there before one gets its name."""
    parts = [path.with_name(f".{path.name}.{uuid.uuid4().hex}.part") for path in paths]
    try:
        for part in parts:
            part.parent.mkdir(parents=True, exist_ok=True)
            part.write_text(text, encoding="utf-8")
            flush(part)
        for part, path in zip(parts, paths, strict=True):
            os.replace(part, path)
    finally:
        for part in parts:
            part.unlink(missing_ok=True)
