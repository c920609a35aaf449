"""One round's materials, made once a seed: synthetic sets, adapters and replay that all students share."""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import lru_cache
from pathlib import Path
from typing import Any

Say = Callable[[str], None]


@dataclass
class Materials:
    """`sets` D_E^b and `adapters` by edge, the base's `replay`, the users' private `shares` and their `audits`."""

    sets: dict[str, Any]
    adapters: dict[str, bytes]
    replay: Any
    shares: list[Any]
    audits: list[dict[str, float]] = field(default_factory=list)

    def concepts(self, recipe: Any) -> dict[str, list[str]]:
        """The taught concepts that each edge's pictures show."""
        from fedkd.data.captions import concept_of

        found = {}
        for name, pictures in self.sets.items():
            named = {concept_of(recipe.prompts, text) for text in pictures["caption"]}
            found[name] = [value for value in recipe.prompts.taught if value in named]
        return found


def once(path: Path | None, make: Callable[[], bytes]) -> bytes:
    """The file's bytes, made first if it is not there; without a path they are only made."""
    if path and path.is_file():
        return path.read_bytes()
    data = make()
    if path:
        path.parent.mkdir(parents=True, exist_ok=True)
        part = path.with_name(f"{path.name}.{os.getpid()}.part")
        part.write_bytes(data)
        os.replace(part, path)
    return data


def gather(recipe: Any, folder: Path | None, say: Say) -> Materials:
    """A round up to the cloud: users synthesise, edges fine-tune, the base draws its replay.

    What lies in `folder` already is taken from there.
    """
    import fedkd.models.pipeline  # noqa: F401, I001 - first, for it silences the loaders' notices
    from datasets import concatenate_datasets, disable_progress_bars

    from fedkd.data.packing import pack_dataset, unpack_dataset
    from fedkd.data.partition import edge_of, partition
    from fedkd.data.sources import load_images
    from fedkd.distillation.pictures import draw_replay
    from fedkd.synthesis.synthesise import synthesise
    from fedkd.training.finetune import finetune

    disable_progress_bars()
    seed = recipe.run.seed
    shares = partition(load_images(recipe), recipe)

    def place(name: str) -> Path | None:
        return folder / name if folder else None

    def user(number: int) -> bytes:
        synthetic, audit = synthesise(pipeline(recipe), shares[number], recipe, seed=1000 * seed + number)
        audits[number] = json.loads(once(place(f"user-{number}.json"), lambda: json.dumps(audit).encode()))
        say(f"user {number} gave {audit['kept']} synthetic pictures of {audit['private']} private ones")
        return pack_dataset(synthetic)

    def edge(name: str) -> bytes:
        adapter, _ = finetune(pipeline(recipe), sets[name], recipe.finetune, seed=seed)
        say(f"{name} fine-tuned")
        return adapter

    by_edge: dict[str, list[Any]] = {}
    audits: dict[int, dict[str, float]] = {}
    for number in range(len(shares)):
        told = place(f"user-{number}.json")
        if told and told.is_file():
            audits[number] = json.loads(told.read_text("utf-8"))
        data = once(place(f"user-{number}.parquet"), lambda number=number: user(number))  # type: ignore[misc]
        by_edge.setdefault(f"edge-{edge_of(number, recipe)}", []).append(unpack_dataset(data))
    sets = {name: concatenate_datasets(parts) for name, parts in by_edge.items()}
    adapters = {
        name: once(place(f"{name}.safetensors"), lambda name=name: edge(name))  # type: ignore[misc]
        for name in sets
    }
    packed = once(place("replay.parquet"), lambda: pack_dataset(draw_replay(pipeline(recipe), recipe, seed=seed)))
    return Materials(sets, adapters, unpack_dataset(packed), shares, [audits[number] for number in sorted(audits)])


def pipeline(recipe: Any) -> Any:
    """The base pipeline, loaded once a process; leave it as it was."""
    return _loaded(recipe.model.path, recipe.run.device, recipe.run.dtype, recipe.model.scheduler)


@lru_cache(maxsize=1)
def _loaded(path: str, device: str, dtype: str, scheduler: str) -> Any:
    from fedkd.models.pipeline import load_pipeline

    return load_pipeline(path, device=device, dtype=dtype, scheduler=scheduler)


@contextmanager
def wearing(pipe: Any, student: bytes | None, scheduler: Any = None) -> Iterator[Any]:
    """Inside the block the pipeline draws as `student` (None: the bare base), with `scheduler` if one is given."""
    from fedkd.distillation.student import install_student, is_full
    from fedkd.models.adapter import load_adapter, remove_adapters
    from fedkd.models.pipeline import denoiser_of

    denoiser, own = denoiser_of(pipe), pipe.scheduler
    before: dict[str, Any] = {}
    try:
        if scheduler is not None:
            pipe.scheduler = scheduler
        if student is not None and is_full(student):
            before = {key: value.detach().clone() for key, value in denoiser.state_dict().items()}
            install_student(pipe, student)
        elif student is not None:
            load_adapter(denoiser, student, "worn")
            denoiser.set_adapter("worn")
        yield pipe
    finally:
        pipe.scheduler = own
        if before:
            denoiser.load_state_dict(before)
        remove_adapters(denoiser)
