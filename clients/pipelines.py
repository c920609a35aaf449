"""The pipeline that a client process loaded last, kept for its next message.

Flower's simulation lets one process answer for many nodes, and all of them serve the same checkpoint: it is loaded once
a process and not once a node. At most one is held; whoever uses it gives it back as it was.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from fedkd.recipe import Recipe

_kept: dict[tuple[str, ...], Any] = {}


def pipeline(digest: str, folder: Path, recipe: Recipe) -> Any:
    """The pipeline of the checkpoint with this manifest digest, which lies in `folder`, as the recipe wants it."""
    run, model = recipe.run, recipe.model
    key = (digest, run.device, run.dtype, model.scheduler)
    if key not in _kept:
        from fedkd.models.pipeline import load_pipeline

        _kept.clear()
        _kept[key] = load_pipeline(str(folder), device=run.device, dtype=run.dtype, scheduler=model.scheduler)
    return _kept[key]
