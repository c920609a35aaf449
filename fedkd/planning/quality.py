"""How good a picture becomes under a compressed visual condition: a fitted surface, or a profile of measurements."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from fedkd.planning.system import PlanningError

CONDITIONS = ("canny", "hed", "depth", "seg")
RESOLUTION_LEVELS = tuple(step / 8 for step in range(1, 9))  # VCE Table I, alpha
QUALITY_LEVELS = tuple(step / 10 for step in range(2, 11))  # VCE Table I, beta
STRUCTURAL = ("canny", "hed", "soft-edge")  # Algorithm 1: candidates of those who want the picture to look like theirs
SAVED = ("conditions", "resolution", "level", "size_bytes", "perceptual", "prompt")

Array = np.ndarray


@dataclass(frozen=True)
class QualitySurface:
    """Scores in 0..1 and sizes where nothing was measured, fitted to VCE Figs. 2, 4 and 7; every value is a choice.

    `ceilings` are (perceptual similarity, prompt alignment) of each condition, as DreamSim and ImageReward
    score them; `drops` are what full compression takes from each; `resolution_weights` say how much of the
    compression comes from a lower resolution. A condition without compression has `full_bytes` bytes.
    """

    ceilings: Mapping[str, tuple[float, float]] = field(
        default_factory=lambda: {
            "canny": (0.84, 0.62),
            "hed": (0.86, 0.64),
            "depth": (0.66, 0.80),
            "seg": (0.63, 0.84),
        }
    )
    resolution_weights: Mapping[str, float] = field(
        default_factory=lambda: {"canny": 0.8, "hed": 0.5, "depth": 0.2, "seg": 0.5}
    )
    drops: tuple[float, float] = (0.12, 0.10)
    scale: float = 1.02
    steps_constant: float = 6.0
    full_bytes: float = 88e3

    def __post_init__(self) -> None:
        if set(self.ceilings) != set(self.resolution_weights):
            raise PlanningError(
                f"ceilings={sorted(self.ceilings)} and resolution_weights={sorted(self.resolution_weights)} must "
                "name the same conditions"
            )
        for name in ("scale", "steps_constant", "full_bytes"):
            if not (math.isfinite(getattr(self, name)) and getattr(self, name) > 0):
                raise PlanningError(f"{name}={getattr(self, name)} must be positive and finite")

    def scores(self, condition: str, resolution: Array, level: Array, steps: Array) -> tuple[Array, Array]:
        """(perceptual, prompt) scores after `steps`, all arguments broadcast; 0 where no step was done.

        `q = s·A·q∞(c)·(1 - b(c)·e^{-T/6})` with compression `c = 1 - α^w β^(1-w)`.
        """
        weight = self.resolution_weights[condition]
        compression = 1 - np.asarray(resolution) ** weight * np.asarray(level) ** (1 - weight)
        lack = 0.266 + 0.2143 * (compression - 0.2)
        gained = self.scale * (1 - lack * np.exp(-np.asarray(steps) / self.steps_constant)) * (np.asarray(steps) > 0)
        perceptual, prompt = (
            ceiling * (1 - drop * (compression**2 - 0.04) / 0.6) * gained
            for ceiling, drop in zip(self.ceilings[condition], self.drops, strict=True)
        )
        return perceptual, prompt

    def size_bytes(self, resolution: Array, level: Array) -> Array:
        """Bytes of the compressed condition, rounded up."""
        return np.ceil(self.full_bytes * np.asarray(resolution) ** 2 * np.asarray(level) ** 1.2 - 1e-9)

    def profile(self, most_steps: int = 50) -> ConditionProfile:
        """The surface at every condition, resolution level and quality level of VCE Table I."""
        kinds, alphas, betas = np.meshgrid(
            np.arange(len(self.ceilings)), RESOLUTION_LEVELS, QUALITY_LEVELS, indexing="ij"
        )
        names, resolution, level = [list(self.ceilings)[kind] for kind in kinds.ravel()], alphas.ravel(), betas.ravel()
        steps = np.arange(most_steps + 1)
        rows = [self.scores(*each, steps) for each in zip(names, resolution, level, strict=True)]
        return ConditionProfile(
            conditions=tuple(names),
            resolution=resolution,
            level=level,
            size_bytes=self.size_bytes(resolution, level),
            perceptual=np.array([row[0] for row in rows]),
            prompt=np.array([row[1] for row in rows]),
        )


@dataclass(frozen=True)
class ConditionProfile:
    """Scores and sizes of V compressed conditions, measured or fitted (VCE section III-A, Fig. 7).

    `conditions`, `resolution` (alpha), `level` (beta) and `size_bytes` are (V,); `perceptual` and `prompt` are
    (V, T+1): the score after 0..T steps, where no step scores 0. `remembered` is what planners worked out of it
    once. Raises PlanningError for what cannot be.
    """

    conditions: tuple[str, ...]
    resolution: Array
    level: Array
    size_bytes: Array
    perceptual: Array
    prompt: Array
    remembered: dict[Any, Array] = field(default_factory=dict, init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        object.__setattr__(self, "conditions", tuple(self.conditions))
        for name in ("resolution", "level", "size_bytes", "perceptual", "prompt"):
            values = np.asarray(getattr(self, name), float)
            object.__setattr__(self, name, values)
            if not np.isfinite(values).all():
                raise PlanningError(f"{name} of the profile holds NaN or infinity; measure it again or leave it out")
        many = len(self.conditions)
        if many == 0:
            raise PlanningError("conditions=() leaves nothing to choose from; give at least one")
        for name in ("resolution", "level", "size_bytes"):
            if getattr(self, name).shape != (many,):
                raise PlanningError(f"{name} has shape {getattr(self, name).shape}; give ({many},), one a condition")
        if self.perceptual.shape != self.prompt.shape or self.perceptual.ndim != 2 or len(self.perceptual) != many:
            raise PlanningError(
                f"perceptual {self.perceptual.shape} and prompt {self.prompt.shape} must both be ({many}, steps + 1)"
            )
        if self.perceptual.shape[1] < 2:
            raise PlanningError("the profile ends at 0 steps; give scores for at least 1")
        if self.size_bytes.min() < 0:
            raise PlanningError(f"size_bytes={self.size_bytes.min():g} must not be negative")
        for name in ("resolution", "level"):
            values = getattr(self, name)
            if not ((values > 0) & (values <= 1)).all():
                raise PlanningError(f"{name}={values.min():g} to {values.max():g} must lie in 0..1, 0 left out")

    @property
    def most_steps(self) -> int:
        """The largest number of steps that the profile knows."""
        return self.perceptual.shape[1] - 1

    def quality(self, preference: Array) -> Array:
        """(K, V, T+1) of users with `preference` (K,) for perceptual similarity in 0..1 (VCE Eq. 1)."""
        wanted = np.atleast_1d(np.asarray(preference, float))[:, None, None]
        if not ((wanted >= 0) & (wanted <= 1)).all():
            raise PlanningError(f"preference={preference} must lie in 0..1: 1 is perceptual similarity alone")
        return wanted * self.perceptual + (1 - wanted) * self.prompt

    def only(self, chosen: Array) -> ConditionProfile:
        """The variants that `chosen`, indices or a mask, picks."""
        kept = np.arange(len(self.conditions))[chosen]
        names = tuple(self.conditions[place] for place in kept)
        values = (getattr(self, name)[kept] for name in ("resolution", "level", "size_bytes", "perceptual", "prompt"))
        return ConditionProfile(names, *values)

    def name(self, variant: int) -> str:
        """What a variant is called, such as 'hed, resolution 0.5, quality 0.3'."""
        return f"{self.conditions[variant]}, resolution {self.resolution[variant]:g}, quality {self.level[variant]:g}"

    def save(self, path: Path, about: Mapping[str, Any] | None = None) -> None:
        """Write the profile as JSON; `about` says how it was measured."""
        facts = {name: np.asarray(getattr(self, name)).tolist() for name in SAVED}
        path.write_text(json.dumps({"about": dict(about or {}), **facts}), encoding="utf-8")

    @classmethod
    def load(cls, path: Path) -> ConditionProfile:
        """Read what `save` wrote. Raises PlanningError for a file that is no profile."""
        try:
            facts = json.loads(path.read_text(encoding="utf-8"))
            return cls(**{name: facts[name] for name in SAVED})
        except (OSError, KeyError, TypeError, AttributeError, ValueError) as error:
            what = error if isinstance(error, OSError | PlanningError) else repr(error)
            raise PlanningError(
                f"{path} is no profile of conditions ({what}); make one with `fedkd plan profile-conditions`"
            ) from error
