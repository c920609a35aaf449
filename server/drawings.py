"""D_C of a cloud that gets no sets: each edge's adapter draws the pictures that its students are to learn from."""

from __future__ import annotations

import json
from pathlib import Path

from fedkd.data.packing import pack_dataset
from fedkd.distillation.pictures import draw_prompts
from fedkd.distillation.robust import update_outliers
from fedkd.models.adapter import load_adapter, remove_adapters
from fedkd.models.pipeline import denoiser_of
from server.cloud import Cloud
from server.state import RunState, seed_of

EDGE = "edge"  # what an adapter is called on the denoiser while it draws


def captions_path(state: RunState, number: int, edge: str) -> Path:
    """Where a round's captions of an edge are kept."""
    return state.round_folder(number) / "captions" / f"{edge}.json"


def draw_sets(cloud: Cloud, number: int, parent: str, adapters: dict[str, Path]) -> dict[str, list[Path]]:
    """A packed set of pictures by each adapter, of its edge's captions; drawn once a round and kept.

    Adapters whose update stands out draw nothing: the cloud has no other pictures to tell them by. How far the
    pictures go over the adapters' own held-out sets nobody can judge here (docs/trust.md).
    """
    state, recipe = cloud.state, cloud.recipe
    given = {edge: path.read_bytes() for edge, path in sorted(adapters.items())}
    distrusted = update_outliers(given, recipe.trust)
    found: dict[str, list[Path]] = {}
    for edge, adapter in given.items():
        if edge in distrusted:
            continue
        path = state.round_folder(number) / "drawn" / f"{edge}.parquet"
        if not path.is_file():
            captions = json.loads(captions_path(state, number, edge).read_text(encoding="utf-8"))
            pipe = cloud.parent(parent)
            load_adapter(denoiser_of(pipe), adapter, EDGE)
            try:
                seed = seed_of(recipe.run.seed, number, "draw", edge)
                drawn = draw_prompts(pipe, recipe, captions, seed=seed, progress=state.progress(number, "draw"))
            finally:
                remove_adapters(denoiser_of(pipe))
            state.write_bytes(path, pack_dataset(drawn))
        found[edge] = [path]
    return found
