"""What a Flower client is in the federation: its role, name, folder and cached checkpoint."""

from __future__ import annotations

import hashlib
import json
import os
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

from flwr.app import Context, Message, RecordDict

from clients.payload import PayloadError, pack, unpack
from fedkd.checkpoints.cache import CheckpointCache
from fedkd.checkpoints.manifest import Manifest
from fedkd.recipe import Recipe, load_recipe

ROLES = ("edge", "user")


class NodeError(ValueError):
    """A client whose configuration does not say what it is."""


@dataclass(frozen=True)
class Node:
    """One taking part: role (`edge` | `user`), name, index in its role, its edge's name, its own folder."""

    role: str
    name: str
    index: int
    edge: str
    folder: Path
    data: str = ""

    @property
    def cache(self) -> CheckpointCache:
        """The node's cached checkpoint."""
        return CheckpointCache(self.folder / "cache")


@lru_cache(maxsize=4)
def recipe_of(text: str) -> Recipe:
    """The validated recipe from the YAML text of a message; nobody may change it."""
    with tempfile.TemporaryDirectory(prefix="fedkd-recipe-") as folder:
        path = Path(folder) / "recipe.yaml"
        path.write_text(text, encoding="utf-8")
        return load_recipe(str(path))


def node_of(context: Context, recipe: Recipe, run: str) -> Node:
    """The node behind a Flower context.

    In simulation the partition decides: the first `federation.edges` partitions are edges, the rest users,
    and each keeps its files in RUN/nodes/NAME. In deployment `--node-config` says it:
    `role="user" name="ann" edge="e0" index=0 data="/my/pictures" cache="/var/lib/fedkd"`.
    """
    config = context.node_config
    if "role" not in config and "partition-id" in config:
        partition, edges = int(config["partition-id"]), recipe.federation.edges
        role = "edge" if partition < edges else "user"
        index = partition if role == "edge" else partition - edges
        return Node(
            role,
            f"{role}-{index}",
            index,
            edge_name(index, role, recipe),
            Path(run) / "nodes" / f"{role}-{index}",
        )
    role = str(config.get("role", ""))
    if role not in ROLES:
        raise NodeError(
            f'node-config role=\'{role}\' is not allowed; start the node with role="edge" or role="user"'
        )
    index = int(config.get("index", 0))
    name = str(config.get("name", f"{role}-{index}"))
    default = Path.home() / ".cache" / "fedkd" / "nodes" / name
    folder = Path(str(config.get("cache", default))).expanduser()
    edge = str(config.get("edge", "")) or edge_name(index, role, recipe)
    return Node(role, name, index, edge, folder, str(config.get("data", "")))


def edge_name(index: int, role: str, recipe: Recipe) -> str:
    """The name of the edge that a node belongs to: an edge to itself, users in equal shares."""
    if role == "edge":
        return f"edge-{index}"
    return (
        f"edge-{min(index, recipe.federation.users - 1) * recipe.federation.edges // recipe.federation.users}"
    )


@dataclass
class Request:
    """An instruction as a handler sees it: the recipe, the node, the facts and the files."""

    recipe: Recipe
    node: Node
    task: dict[str, Any]
    files: dict[str, bytes]

    @property
    def seed(self) -> int:
        """The seed that the server derived for this node, round and phase."""
        return int(self.task["seed"])

    def checkpoint(self) -> Path:
        """Store the blobs that came along, activate the published checkpoint, return its verified folder."""
        manifest = Manifest.from_json(str(self.task["manifest"]))
        cache = self.node.cache
        for sha256, data in self.files.items():
            if len(sha256) == hashlib.sha256().digest_size * 2:
                cache.put(sha256, data)
        return cache.path() if cache.digest == manifest.digest else cache.activate(manifest)

    def progress(self) -> Callable[[int, int], None]:
        """A progress callable that keeps `progress.json` in the node's folder for whoever watches."""
        path, last = self.node.folder / "progress.json", [0.0]

        def report(done: int, total: int) -> None:
            now = time.monotonic()
            if now - last[0] > 1.0 or done >= total:
                last[0] = now
                path.parent.mkdir(parents=True, exist_ok=True)
                part = path.with_suffix(".part")
                part.write_text(
                    json.dumps({"phase": self.task.get("phase", ""), "done": done, "total": total})
                )
                os.replace(part, path)

        return report


def answer(message: Message, context: Context, handle: Callable[[Request], RecordDict]) -> Message:
    """Check a message, carry out `handle`, and reply with what it returns."""
    task, files = unpack(message.content, max_bytes=2**62)
    try:
        recipe = recipe_of(str(task["recipe"]))
        run = str(task["run"])
    except KeyError as error:
        raise PayloadError(f"the instruction lacks {error}") from error
    return Message(handle(Request(recipe, node_of(context, recipe, run), task, files)), reply_to=message)


def describe(request: Request) -> RecordDict:
    """What the node is, and which blobs of checkpoints it holds undamaged."""
    node, cache = request.node, request.node.cache
    facts = {"role": node.role, "name": node.name, "index": node.index, "edge": node.edge}
    return pack({**facts, "digest": cache.digest, "blobs": cache.held(), "cores": os.cpu_count() or 1})


def use_threads(recipe: Recipe) -> None:
    """Give torch the recipe's number of threads: part of what makes a result repeatable."""
    import torch

    torch.set_num_threads(recipe.run.threads)
