"""How many steps prompts of a given similarity may share: learned from measured loss of quality, not guessed."""

from __future__ import annotations

import json
import math
import os
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np

from fedkd.planning.machines import PlanningError

Array = Any
FORMAT = 1
CERTAINTY = 1.0  # standard errors that the measured loss is taken for worse than it came out
LEAST_PAIRS = 20  # of a bin, below which nothing is known
TABLES = ("loss", "error", "count")
TEXTS = ("scheduler", "embedding", "model")
FIELDS = ("edges", "steps", "total", "guidance_scale", *TABLES, *TEXTS)


@dataclass(frozen=True)
class SharingProfile:
    """Measured loss of quality by similarity and shared steps, for one way to draw.

    Bin b holds similarities from `edges[b]` up to `edges[b+1]`, the last one up to 1; below `edges[0]` nothing was
    measured. `loss`, `error` (its standard error) and `count` (pairs) are (B, K), K = len(`steps`), in shares of
    pictures (0.01: one point of prompt accuracy) lost against pictures drawn alone. It holds for `total` evaluations
    of the denoiser by `scheduler` at `guidance_scale`, for prompts seen through `embedding`; `model` is the digest it
    was measured on. Raises PlanningError for what cannot be.
    """

    edges: tuple[float, ...]
    steps: tuple[int, ...]
    loss: Array
    error: Array
    count: Array
    total: int
    scheduler: str
    guidance_scale: float
    embedding: str = "text_encoder"
    model: str = ""

    def __post_init__(self) -> None:
        object.__setattr__(self, "edges", tuple(float(each) for each in self.edges))
        object.__setattr__(self, "steps", tuple(self.steps))
        for name in TABLES:
            object.__setattr__(self, name, np.asarray(getattr(self, name), dtype=np.float64))
        if not isinstance(self.total, int) or isinstance(self.total, bool) or self.total < 1:
            raise PlanningError(f"total={self.total!r} must be a number of steps of at least 1")
        if not self.edges or not _rises(self.edges) or self.edges[0] < -1 or self.edges[-1] > 1:
            raise PlanningError(f"edges={list(self.edges)} must be similarities from -1 to 1 in rising order")
        if not all(type(k) is int and 1 <= k < self.total for k in self.steps) or not _rises(self.steps):
            raise PlanningError(
                f"steps={list(self.steps)} must rise within 1..{self.total - 1}: the end is never shared"
            )
        for name in TEXTS:
            if not isinstance(getattr(self, name), str):
                raise PlanningError(f"{name}={getattr(self, name)!r} must be text")
        for name in TABLES:
            table, wanted = getattr(self, name), (len(self.edges), len(self.steps))
            if table.shape != wanted:
                raise PlanningError(f"{name} has shape {table.shape}; give {wanted}: similarity bins by shared steps")
            if not np.isfinite(table).all():
                raise PlanningError(f"{name} holds NaN or infinity; leave the bin out, or give it a count of 0")
        if self.count.min(initial=0) < 0 or self.error.min(initial=0) < 0:
            raise PlanningError("count and error must not be negative")

    def bin_of(self, similarity: float) -> int | None:
        """The bin of a similarity; None below all of them, or for what is no number."""
        if not similarity >= self.edges[0]:
            return None
        return int(np.searchsorted(self.edges, min(similarity, 1.0), side="right")) - 1

    def save(self, path: Path) -> None:
        """Write the profile as JSON, whole or not at all."""
        facts = {name: getattr(self, name) for name in FIELDS}
        facts |= {name: facts[name].tolist() for name in TABLES} | {"format": FORMAT}
        part = path.with_name(f"{path.name}.part")
        part.write_text(json.dumps(facts, indent=1) + "\n", "utf-8")
        os.replace(part, path)

    @classmethod
    def load(cls, path: Path) -> SharingProfile:
        """Read what `save` wrote; PlanningError for a file that is no profile of sharing."""
        try:
            facts = json.loads(path.read_text("utf-8"))
            if not isinstance(facts, dict) or facts.get("format") != FORMAT:
                raise PlanningError(f"format must be {FORMAT}")
            if missing := set(FIELDS) - set(facts):
                raise PlanningError(f"'{min(missing)}' is missing")
            return cls(**{name: facts[name] for name in FIELDS})
        except (OSError, TypeError, ValueError) as error:
            raise PlanningError(
                f"{path} is no profile of sharing ({error}); `fedkd bench sharing` measures one"
            ) from error


def _rises(values: Sequence[float]) -> bool:
    return all(low < high for low, high in pairwise(values))


def measured(
    similarity: Array, lost: Array, *, edges: Sequence[float], steps: Sequence[int], **facts: Any
) -> SharingProfile:
    """A SharingProfile of n pairs: `similarity` (n,), and `lost` (n, K) in -1..1 after sharing each of `steps`.

    `facts` are the profile's others. A bin without pairs has a loss of 0 and a count of 0, which no policy trusts.
    """
    similarity, lost = np.asarray(similarity, float), np.asarray(lost, float)
    if lost.shape != (len(similarity), len(steps)):
        raise PlanningError(f"lost has shape {lost.shape}; give ({len(similarity)}, {len(steps)}): pairs by steps")
    bins = np.searchsorted(edges, np.minimum(similarity, 1.0), side="right") - 1
    shape = (len(edges), len(steps))
    loss, error, count = np.zeros(shape), np.zeros(shape), np.zeros(shape)
    for place in range(len(edges)):
        inside = lost[bins == place]
        count[place] = len(inside)
        if len(inside):
            loss[place] = inside.mean(0)
        if len(inside) > 1:
            # pairs that all came out alike are no proof: Wilson's bound for none of n at one standard error
            least = 1 / (len(inside) + 1)
            error[place] = np.maximum(inside.std(0, ddof=1) / math.sqrt(len(inside)), least)
    return SharingProfile(tuple(edges), tuple(steps), loss, error, count, **facts)


@dataclass(frozen=True)
class SharingPolicy:
    """The most steps that a similarity may share at `allowed_loss` (a share of pictures, 0.01: one point).

    A bin counts with `certainty` standard errors on top of its mean, and not at all below `least_pairs` pairs. What
    more steps lose cannot be less than what fewer do. More similar prompts should not lose more than less similar ones:
    a bin whose own mean loss is within bounds may be judged together with the ones below it. PlanningError for a loss
    outside 0..1.
    """

    profile: SharingProfile
    allowed_loss: float = 0.01
    certainty: float = CERTAINTY
    least_pairs: int = LEAST_PAIRS

    def __post_init__(self) -> None:
        if not 0 <= self.allowed_loss <= 1:
            raise PlanningError(
                f"allowed_loss={self.allowed_loss:g} is no share of pictures; give 0 to 1, such as 0.01"
            )

    @property
    def table(self) -> tuple[int, ...]:
        """(B,) steps that each bin of the profile may share; 0 for none."""
        profile = self.profile
        bounds = np.full(profile.loss.shape, np.inf)
        for first in range(len(bounds)):
            for last in range(first, len(bounds)):
                bounds[last] = np.minimum(bounds[last], self._bound(slice(first, last + 1)))
        bounds = np.maximum(np.minimum.accumulate(bounds, axis=0), profile.loss)
        may = np.maximum.accumulate(bounds, axis=1) <= self.allowed_loss
        return tuple(profile.steps[int(row.sum()) - 1] if row.any() else 0 for row in may)

    def _bound(self, bins: slice) -> Array:
        """(K,) what the pairs of neighbouring bins lose together, `certainty` standard errors on top."""
        profile = self.profile
        loss, error, count = profile.loss[bins], profile.error[bins], profile.count[bins]
        total = count.sum(0)
        shares = count / np.maximum(total, 1)
        mean = (shares * loss).sum(0)
        spread = (shares * (error**2 * count + (loss - mean) ** 2)).sum(0)  # the variance of a pair
        bound = mean + self.certainty * np.sqrt(spread / np.maximum(total, 1))
        return np.where(total >= self.least_pairs, bound, np.inf)

    @property
    def floor(self) -> float:
        """The least similarity that may share anything; above 1 when none may."""
        return next((edge for edge, k in zip(self.profile.edges, self.table, strict=True) if k), math.inf)

    @property
    def forks(self) -> tuple[int, ...]:
        """The steps at which anybody may fork off, rising."""
        return tuple(sorted(set(self.table) - {0}))

    def steps(self, similarity: float) -> int:
        """How many steps a prompt may share with one of this similarity; 0 for none."""
        place = self.profile.bin_of(similarity)
        return 0 if place is None else self.table[place]

    def group_steps(self, similarities: Sequence[float]) -> int:
        """How many steps a whole group may share, of its members' similarities to the leader; 0 for one alone."""
        return min(map(self.steps, similarities)) if len(similarities) > 1 else 0

    def fits(self, scheduler: str, total: int, guidance_scale: float) -> bool:
        """Whether a picture is drawn the way that the profile was measured."""
        profile = self.profile
        return (scheduler, total, float(guidance_scale)) == (
            profile.scheduler, profile.total, float(profile.guidance_scale)
        )  # fmt: skip
