"""Nodes that answer at once, with pictures and adapters that nobody trained: whole runs with faults in a second.

They speak the real messages; the server cannot tell them from nodes that did the work.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from flwr.app import Context, Message
from PIL import Image

from clients.payload import pack, unpack
from fedkd.checkpoints.manifest import Manifest
from fedkd.data.packing import pack_dataset
from fedkd.data.sources import to_dataset
from fedkd.models.adapter import adapter_bytes, add_adapter, remove_adapters
from fedkd.models.pipeline import denoiser_of
from fedkd.recipe import LoraConfig, Recipe, load_recipe
from server.rounds import Federation
from tests.server.loopback_grid import Fault, LoopbackGrid

LORA = LoraConfig(rank=2, alpha=2, target_modules=["to_q"])
LIGHT = (
    "model.num_inference_steps=1",
    "model.name=tiny",
    "finetune.lora={rank: 2, alpha: 2, target_modules: [to_q]}",
    "distillation.lora={rank: 2, alpha: 2, target_modules: [to_q]}",
    "distillation.steps=1",
    "distillation.batch_size=2",
    "distillation.replay=0",
    "distillation.outlier=1e6",
    "evaluation.classifier=''",
    "evaluation.samples_per_concept=1",
    "evaluation.num_inference_steps=1",
    "prompts.known=[zero]",
    "prompts.taught=[seven]",
    "federation.phase_timeout_s=30",
)


@functools.cache
def picture_set(seed: int) -> bytes:
    """A packed set of four pictures of noise."""
    noise = np.random.default_rng(seed).integers(0, 256, (4, 32, 32, 3), dtype=np.uint8)
    return pack_dataset(to_dataset([{"image": Image.fromarray(pixels), "caption": "a seven"} for pixels in noise]))


def adapter(pipe: Any, seed: int, *, common: float = 1.0, own: float = 1.0) -> bytes:
    """An adapter for `pipe`, which ends as it was: the same update for all seeds times `common`, and one of its own."""
    import torch

    denoiser = denoiser_of(pipe)
    parameters = add_adapter(denoiser, "made", LORA, seed)
    for place, parameter in enumerate(parameters):
        shared, mine = torch.Generator().manual_seed(1000 + place), torch.Generator().manual_seed(10 * seed + place)
        if place % 2:  # B, after its A: two columns, one for all and one of its own
            parameter.data = torch.randn(parameter.shape, generator=shared) * 0.05
            parameter.data[:, 0] *= common
            parameter.data[:, 1] = torch.randn(len(parameter), generator=mine) * 0.05 * own
        else:
            parameter.data = torch.randn(parameter.shape, generator=shared)
            parameter.data[1] = torch.randn(parameter.shape[1], generator=mine)
    data = adapter_bytes(denoiser, "made")
    remove_adapters(denoiser)
    return data


class Puppets:
    """The application of all nodes: each keeps the digest of its checkpoint, and edges have an adapter of their own."""

    def __init__(self, recipe: Recipe, pipe: Any) -> None:
        self.recipe = recipe
        self.digests: dict[str, str] = {}
        self.adapters = {f"edge-{edge}": adapter(pipe, edge) for edge in range(recipe.federation.edges)}
        self.work: list[tuple[str, str]] = []  # (node, phase) in order

    def __call__(self, message: Message, context: Context) -> Message:
        """A node's answer."""
        task, files = unpack(message.content, max_bytes=2**40)
        phase, partition = task["phase"], int(context.node_config["partition-id"])
        edges, users = self.recipe.federation.edges, self.recipe.federation.users
        role = "edge" if partition < edges else "user"
        index = partition if role == "edge" else partition - edges
        edge = index if role == "edge" else index * edges // users
        name = f"{role}-{index}"
        self.work.append((name, phase))
        told: dict[str, Any] = {}
        if "manifest" in task:
            manifest = Manifest.from_json(task["manifest"])
            full = manifest.size_bytes if self.digests.get(name) != manifest.digest else 0
            self.digests[name] = manifest.digest
            told = {"digest": manifest.digest, "checkpoint_bytes": {"fetched": full, "saved": 0, "full": full}}
        match phase:
            case "describe":
                held = {"digest": self.digests.get(name, ""), "blobs": []}
                content = pack({"role": role, "name": name, "index": index, "edge": f"edge-{edge}", **held})
            case "synthesise":
                content = pack({**told, "audit": {"kept": 4}}, {"set": picture_set(100 * task["round"] + index)})
            case "finetune":
                assert files and set(files) <= {f"user-{n}" for n in range(users)}
                content = pack({"metrics": {}, "loss": [1.0, 0.5]}, {"adapter": self.adapters[name]})
            case _:
                content = pack(told)
        return Message(content, reply_to=message)


def light_recipe(model: Path, out: Path, *overrides: str) -> Recipe:
    """Two edges and four users with little work for the server; the run is OUT/small."""
    places = (f"model.path={model}", f"run.out={out}", "run.name=small")
    return load_recipe("quickstart", [*LIGHT, *places, *overrides])


def puppet_federation(
    recipe: Recipe, puppets: Puppets, out: Path, faults: dict[tuple[int, str], Fault] | None = None, **more: Any
) -> Federation:
    """A federation of puppets, who pull from a registry that they only speak of; its run is OUT/small."""
    run = out / "small"
    run.mkdir(parents=True, exist_ok=True)
    grid = LoopbackGrid(recipe.federation.edges + recipe.federation.users, faults, app=puppets, **more)
    return Federation(grid, recipe, run, run / "registry", registry_url="http://nowhere", wait_s=0.0)


MakePuppets = Callable[..., tuple[Federation, Puppets]]
