"""How checkpoints get to nodes: offered at a registry's URL, and what of them moved against full models."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from fedkd.checkpoints.manifest import Manifest
from fedkd.checkpoints.registry import Registry
from fedkd.checkpoints.transfer import push
from server.state import RunState

PHASE = "checkpoints"  # of the run's state: what each node took in a round
TIMES = 32  # no node moves more than so many times a full model, however often transfers broke


class Shopfront:
    """The place that nodes pull from; where it is a store and not the registry itself, versions are pushed there."""

    def __init__(self, registry: Registry, url: str) -> None:
        self.registry, self.url = registry, url
        self._offered: set[str] = set()

    @property
    def needs_push(self) -> bool:
        """Whether published versions have to be copied there; whoever serves http(s) serves a registry already."""
        parts = urlsplit(self.url)
        if parts.scheme == "file":
            return Path(parts.path).resolve() != self.registry.root.resolve()
        return parts.scheme == "s3"

    def offer(self, reference: str, progress: Callable[[int, int], None] | None = None) -> None:
        """Make a published version available to nodes; CheckpointError when the store does not take it."""
        if self.needs_push and reference not in self._offered:
            push(self.registry, reference, self.url, progress=progress)
            self._offered.add(reference)


def check_bytes(task: Mapping[str, Any], manifest: Manifest) -> dict[str, int]:
    """What a node says a checkpoint cost it: {"fetched", "saved", "full"}; ValueError when that cannot be."""
    told = dict(task["checkpoint_bytes"])
    cost = {key: told[key] for key in ("fetched", "saved", "full")}
    if any(type(value) is not int or value < 0 for value in cost.values()):
        raise ValueError("its checkpoint_bytes hold something that is not a number of bytes")
    if cost["full"] not in (0, manifest.size_bytes):
        raise ValueError(f"its checkpoint_bytes are of another model than {manifest.reference}")
    if cost["fetched"] > TIMES * cost["full"] or cost["saved"] > cost["full"]:
        raise ValueError("its checkpoint_bytes are more than the model has")
    return cost


def record(state: RunState, number: int, phase: str, url: str, costs: Mapping[str, Mapping[str, int]]) -> None:
    """Add what nodes took in a phase to the round's record; a node that had the model already took nothing.

    What a phase took before the server was stopped in it is replaced where the node is named again.
    """
    taken = [{"name": name, "phase": phase, **cost} for name, cost in sorted(costs.items()) if cost["full"]]
    if taken:
        again = {each["name"] for each in taken}
        before = (state.finished(number, PHASE) or {}).get("taken", [])
        before = [each for each in before if each["phase"] != phase or each["name"] not in again]
        via = "registry" if url else "messages"
        state.finish(number, PHASE, {"via": via, "taken": [*before, *taken]})


def delivered(state: RunState, number: int) -> dict[str, Any]:
    """A round's checkpoints to nodes: bytes `moved` of `full` models, `models` taken by `nodes`, `share`, `via`.

    `via` says how the bytes came: pulled from a `registry`, or within Flower's `messages`.
    """
    facts = state.finished(number, PHASE) or {"via": "", "taken": []}
    taken = facts["taken"]
    moved, full = (sum(each[key] for each in taken) for key in ("fetched", "full"))
    nodes = len({each["name"] for each in taken})
    share = moved / full if full else None
    return {"moved": moved, "full": full, "models": len(taken), "nodes": nodes, "share": share, "via": facts["via"]}
