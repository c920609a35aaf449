"""Who shares denoising with whom: an incremental graph of prompts that mean nearly the same (CDDAA, step 3)."""

from __future__ import annotations

from collections.abc import Hashable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any, Generic, TypeVar

import numpy as np

from fedkd.planning.machines import PlanningError

Array = Any
Key = TypeVar("Key", bound=Hashable)
SLACK = 1e-9  # cosines of equal vectors come out a rounding error below 1
FIRST_ROOM = 16


def unit(embedding: Array) -> Array:
    """`embedding` (d,) or (n, d) with rows of length 1; PlanningError for zeros, NaN or infinity."""
    vectors = np.asarray(embedding, dtype=np.float64)
    lengths = np.linalg.norm(vectors, axis=-1, keepdims=True)
    if vectors.ndim not in (1, 2) or not np.isfinite(lengths).all() or not (lengths > 0).all():
        raise PlanningError(f"embedding of shape {vectors.shape} has no direction; give finite numbers, not all zero")
    return vectors / lengths


def cosines(embedding: Array, others: Array) -> Array:
    """(n,) cosine similarities of a unit vector (d,) and unit vectors (n, d), within -1..1."""
    return np.clip(np.asarray(others) @ np.asarray(embedding), -1.0, 1.0)


@dataclass(frozen=True)
class Group(Generic[Key]):
    """Requests that may share steps: the leader's prompt is drawn, and members fork off it.

    `members` begins with the leader; `similarity` (len(members),) is each one's to the leader, its own being 1.
    """

    members: tuple[Key, ...]
    similarity: tuple[float, ...]

    @property
    def leader(self) -> Key:
        """Whose prompt the shared steps are drawn for."""
        return self.members[0]


class SimilarityGraph(Generic[Key]):
    """Prompts as nodes, an edge where their cosine is at least `floor`; each change costs one product, (n, d) by (d,).

    PlanningError when `floor` is not in -1..1, a key is there already, or an embedding has another width.
    """

    def __init__(self, floor: float) -> None:
        if not -1 <= floor <= 1:
            raise PlanningError(f"floor={floor:g} is no cosine similarity; give -1 to 1")
        self.floor = floor
        self._places: dict[Key, int] = {}  # in order of arrival
        self._free: list[int] = []
        self._vectors: Array = np.zeros((0, 0))
        self._near: dict[Key, dict[Key, float]] = {}

    def __len__(self) -> int:
        return len(self._places)

    def __contains__(self, key: Key) -> bool:
        return key in self._places

    def add(self, key: Key, embedding: Array) -> dict[Key, float]:
        """Add a prompt's embedding (d,); its neighbours with their similarities."""
        if key in self._places:
            raise PlanningError(f"{key!r} is in the graph already; remove it first")
        vector = unit(embedding)
        if vector.ndim != 1 or (self._places and vector.shape != self._vectors.shape[1:]):
            raise PlanningError(f"embedding of shape {vector.shape}, expected {self._vectors.shape[1:]}")
        near = self.similar(vector)
        self._place(key, vector)
        self._near[key] = near
        for other, similarity in near.items():
            self._near[other][key] = similarity
        return dict(near)

    def similar(self, embedding: Array) -> dict[Key, float]:
        """The prompts within `floor` of an embedding (d,), whether it is in the graph or not."""
        if not self._places:
            return {}
        keys, places = list(self._places), list(self._places.values())
        found = cosines(unit(embedding), self._vectors[places])
        return {key: float(s) for key, s in zip(keys, found, strict=True) if s >= self.floor - SLACK}

    def remove(self, key: Key) -> None:
        """Take a prompt out; nothing when it is not in."""
        if key not in self._places:
            return
        self._free.append(self._places.pop(key))
        for other in self._near.pop(key):
            del self._near[other][key]

    def neighbours(self, key: Key) -> dict[Key, float]:
        """Who is similar to `key`, and how much."""
        return dict(self._near[key])

    def groups(self, most: int, keys: Iterable[Key] | None = None) -> list[Group[Key]]:
        """All prompts (or `keys` alone) in stars of `most` at most, each member within `floor` of its leader.

        Greedy: whoever has most neighbours left leads first, the earliest of equals; its nearest join it. Somebody
        whom nobody resembles is a group of one. PlanningError when `most` < 1.
        """
        if most < 1:
            raise PlanningError(f"most={most} leaves no group; give at least 1")
        left = dict.fromkeys(self._places if keys is None else keys)
        near = {key: {other for other in self._near[key] if other in left} for key in left}
        found: list[Group[Key]] = []
        while left:
            leader = max(left, key=lambda key: min(len(near[key]), most - 1))  # max keeps the first of equals
            similar = self._near[leader]
            joined = sorted(near[leader], key=lambda key: -similar[key])[: most - 1]
            found.append(Group((leader, *joined), (1.0, *(similar[key] for key in joined))))
            for gone in (leader, *joined):
                del left[gone]
                for other in near.pop(gone):
                    if other in near:
                        near[other].discard(gone)
        return found

    def _place(self, key: Key, vector: Array) -> None:
        if not self._places:
            self._vectors, self._free = np.zeros((FIRST_ROOM, len(vector))), list(range(FIRST_ROOM))
        if not self._free:
            rows = len(self._vectors)
            self._vectors = np.vstack([self._vectors, np.zeros_like(self._vectors)])
            self._free = list(range(rows, 2 * rows))
        self._places[key] = place = self._free.pop()
        self._vectors[place] = vector


def group_prompts(embeddings: Array, *, floor: float, most: int) -> list[Group[int]]:
    """Groups of the rows of `embeddings` (n, d), see `SimilarityGraph.groups`."""
    graph = SimilarityGraph[int](floor)
    for place, vector in enumerate(np.asarray(embeddings)):
        graph.add(place, vector)
    return graph.groups(most)


def steps_saved(groups: Sequence[Group[Any]], shared: Sequence[Sequence[int]]) -> int:
    """Steps that nobody has to run: each member but the leader is spared the `shared[g][m]` steps it forks off at."""
    return sum(sum(each[1:]) for _, each in zip(groups, shared, strict=True))
