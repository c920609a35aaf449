"""What a Flower client is in the federation: its role, name, folder and cached checkpoint."""

from __future__ import annotations

import json
import os
import tempfile
import time
from collections.abc import Callable, Iterable, Mapping
from contextlib import closing
from dataclasses import dataclass, field
from functools import cached_property, lru_cache
from pathlib import Path
from typing import Any

from flwr.app import Context, Message, RecordDict

from clients.blobs import BlobSource
from clients.payload import PayloadError, pack, unpack
from fedkd.checkpoints.cache import CheckpointCache
from fedkd.checkpoints.manifest import SIGNATURE_NAME, Manifest
from fedkd.checkpoints.signing import TrustPolicy
from fedkd.recipe import Recipe, check_registry_url, load_recipe

ROLES = ("edge", "user")
CONFIG = "config.json"  # in a simulated node's folder


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
    policy: TrustPolicy = field(default_factory=TrustPolicy)
    cache_bytes: int = 0
    registry: str = ""
    config: Mapping[str, Any] = field(default_factory=dict)  # what the node's own configuration says besides

    @property
    def cache(self) -> CheckpointCache:
        """The node's cached checkpoints: at most `cache_bytes` (0: no bound), of signers that `policy` trusts."""
        return CheckpointCache(self.folder / "cache", max_bytes=self.cache_bytes, policy=self.policy)


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
    `role="user" name="ann" edge="e0" index=0 data="/my/pictures" cache="/var/lib/fedkd"`, and whom the node trusts:
    `trusted-keys="/etc/fedkd/server.pub" require-signature=true cache-mb=8000`; `registry="https://mirror"` pulls
    checkpoints from there instead of the place that the server names.
    """
    config = context.node_config
    if "role" not in config and "partition-id" in config:
        partition, edges = int(config["partition-id"]), recipe.federation.edges
        role = "edge" if partition < edges else "user"
        index = partition if role == "edge" else partition - edges
        folder = Path(run) / "nodes" / f"{role}-{index}"
        return Node(
            role,
            f"{role}-{index}",
            index,
            edge_name(index, role, recipe),
            folder,
            policy=TrustPolicy(recipe.serving.require_signature, _paths(recipe.serving.trusted_keys)),
            cache_bytes=int(recipe.serving.cache_mb * 2**20),
            config=_written(folder / CONFIG),
        )
    role = str(config.get("role", ""))
    if role not in ROLES:
        raise NodeError(f'node-config role=\'{role}\' is not allowed; start the node with role="edge" or role="user"')
    index = int(config.get("index", 0))
    name = str(config.get("name", f"{role}-{index}"))
    default = Path.home() / ".cache" / "fedkd" / "nodes" / name
    folder = Path(str(config.get("cache", default))).expanduser()
    edge = str(config.get("edge", "")) or edge_name(index, role, recipe)
    limit = float(config.get("cache-mb", recipe.serving.cache_mb))
    policy = own_policy(config, recipe)
    registry = check_registry_url(str(config.get("registry", "")), "node-config registry")
    data = str(config.get("data", ""))
    return Node(role, name, index, edge, folder, data, policy, int(limit * 2**20), registry, dict(config))


def _written(path: Path) -> dict[str, Any]:
    """A simulated node's own configuration, which nobody can give it on a command line."""
    return dict(json.loads(path.read_text(encoding="utf-8"))) if path.is_file() else {}


def own_policy(config: Mapping[str, Any], recipe: Recipe) -> TrustPolicy:
    """Whom a deployed node trusts: keys from its own configuration alone, since the server sends the recipe.

    The recipe can only ask for more: its `serving.require_signature` holds too, and needs keys named at the node.
    """
    keys = _paths(key.strip() for key in str(config.get("trusted-keys", "")).split(",") if key.strip())
    for key in keys:
        if not key.is_file():
            raise NodeError(f"node-config trusted-keys names '{key}', which does not exist; give paths of public keys")
    required = _truth(config.get("require-signature", False)) or recipe.serving.require_signature
    if required and not keys:
        raise NodeError(
            "signed checkpoints are required but this node trusts no key; start it with "
            'trusted-keys="/path/of/server.pub" in its node-config'
        )
    return TrustPolicy(required, keys)


def _paths(names: Iterable[str]) -> tuple[Path, ...]:
    return tuple(Path(name).expanduser() for name in names)


def _truth(value: object) -> bool:
    text = str(value).strip().lower()
    if text not in ("true", "false", "1", "0"):  # what is meant to protect must not fail open
        raise NodeError(f"node-config require-signature='{value}' is not allowed; give true or false")
    return text in ("true", "1")


def edge_name(index: int, role: str, recipe: Recipe) -> str:
    """The name of the edge that a node belongs to: an edge to itself, users in equal shares."""
    if role == "edge":
        return f"edge-{index}"
    return f"edge-{min(index, recipe.federation.users - 1) * recipe.federation.edges // recipe.federation.users}"


@dataclass(frozen=True)
class Taken:
    """A checkpoint that a node serves: its verified folder, and the bytes that came, lay there already, and all.

    All three are 0 when the node served this checkpoint before.
    """

    folder: Path
    fetched: int = 0
    saved: int = 0
    full: int = 0

    def cost(self) -> dict[str, int]:
        """The bytes as an answer tells them."""
        return {"fetched": self.fetched, "saved": self.saved, "full": self.full}


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

    @cached_property
    def source(self) -> BlobSource:
        """Where blobs come from: the instruction, else the registry of the node's configuration or of the server."""
        url = self.node.registry or check_registry_url(str(self.task.get("registry", "")), "the server's registry")
        return BlobSource(self.files, url)

    @cached_property
    def cache(self) -> CheckpointCache:
        """The node's cache, which gets from `source` what it lacks or finds damaged."""
        cache = self.node.cache
        cache.fetch = self.source
        return cache

    def checkpoint(self) -> Taken:
        """Activate the published checkpoint, with the blobs that it needs from `source`.

        CheckpointError when they cannot be had or it is refused; the node goes on with the checkpoint before.
        """
        text, before = str(self.task["manifest"]), self.cache.digest
        manifest, signature = Manifest.from_json(text), self.files.get(SIGNATURE_NAME, b"")
        folder = self.cache.activate(manifest, text=text, signature=signature)
        moved = self.source.pulled + sum(size for sha256, size in manifest.blobs.items() if sha256 in self.files)
        if not moved and before == manifest.digest:
            return Taken(folder)
        return Taken(folder, moved, max(0, manifest.size_bytes - moved), manifest.size_bytes)

    def progress(self) -> Callable[[int, int], None]:
        """A progress callable that keeps `progress.json` in the node's folder for whoever watches."""
        path, last = self.node.folder / "progress.json", [0.0]

        def report(done: int, total: int) -> None:
            now = time.monotonic()
            if now - last[0] > 1.0 or done >= total:
                last[0] = now
                path.parent.mkdir(parents=True, exist_ok=True)
                part = path.with_suffix(".part")
                part.write_text(json.dumps({"phase": self.task.get("phase", ""), "done": done, "total": total}))
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
    request = Request(recipe, node_of(context, recipe, run), task, files)
    with closing(request.source):
        return Message(handle(request), reply_to=message)


def describe(request: Request) -> RecordDict:
    """What the node is, and which blobs of checkpoints it holds undamaged."""
    node, cache = request.node, request.node.cache
    facts = {"role": node.role, "name": node.name, "index": node.index, "edge": node.edge}
    blobs = cache.held()  # first: it deletes damaged ones, which makes what they belong to unsound
    return pack({**facts, "digest": cache.sound_digest(), "blobs": blobs, "cores": os.cpu_count() or 1})


def use_threads(recipe: Recipe) -> None:
    """Give torch the recipe's number of threads: part of what makes a result repeatable."""
    import torch

    torch.set_num_threads(recipe.run.threads)
