"""Requests for denoising control from plain facts, such as a JSON file of users."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np

from fedkd.planning.condition import ASSUMED_STEPS, ConditionProblem, vce
from fedkd.planning.denoising_problem import (
    DELAY_LIMIT_S,
    DELAY_WEIGHT,
    EDGE_STEP_S,
    EDGE_STEPS,
    IMAGE_BYTES,
    LATENTS_BYTES,
    DenoisingProblem,
)
from fedkd.planning.quality import ConditionProfile
from fedkd.planning.system import PlanningError
from fedkd.recipe import nearest

NUMBERS = ("preference", "quality_floor", "device_step_s", "device_steps", "up_bps", "down_bps")
USER = (*NUMBERS, "name", "condition", "resolution", "level", "extraction_s")
EDGE = (
    "edge_step_s",
    "edge_steps",
    "delay_limit_s",
    "delay_weight",
    "latents_bytes",
    "image_bytes",
    "least_edge_steps",
)
EXAMPLE: dict[str, Any] = {
    "edge_steps": 60,
    "edge_step_s": 0.11,
    "delay_limit_s": 10,
    "users": [
        {
            "name": name,
            "preference": preference,
            "quality_floor": floor,
            "device_step_s": step_s,
            "device_steps": steps,
            "up_bps": 8e6,
            "down_bps": 15e6,
        }
        for name, preference, floor, step_s, steps in (
            ("ann", 0.8, 0.75, 1.1, 1),
            ("bob", 0.3, 0.70, 0.44, 6),
            ("cleo", 0.6, 0.65, 0.22, 12),
        )
    ],
}


@dataclass(frozen=True)
class DenoisingRequest:
    """One user: what it wants (`preference`, `quality_floor`, `condition`), its device, and its link.

    Without `condition` VCE chooses one. Units and ranges are those of `DenoisingProblem`.
    """

    preference: float
    quality_floor: float
    device_step_s: float
    device_steps: int
    up_bps: float
    down_bps: float
    extraction_s: float = 0.0
    name: str = ""
    condition: str = ""
    resolution: float = 1.0
    level: float = 1.0


@dataclass(frozen=True)
class DenoisingSystem:
    """The edge, the conditions' `profile`, and what counts; `joint` also chooses conditions that users leave open."""

    profile: ConditionProfile
    edge: str = "edge"
    edge_steps: int = EDGE_STEPS
    edge_step_s: float = EDGE_STEP_S
    delay_limit_s: float = DELAY_LIMIT_S
    delay_weight: float = DELAY_WEIGHT
    latents_bytes: int = LATENTS_BYTES
    image_bytes: int = IMAGE_BYTES
    least_edge_steps: int = 0
    joint: bool = False
    objective: str = "satisfied-bytes-utility"


@dataclass(frozen=True)
class Asked:
    """A problem with `variants` (K, V): which of the profile's conditions each of its V conditions is."""

    problem: DenoisingProblem
    profile: ConditionProfile
    variants: np.ndarray

    def names(self, variant: np.ndarray) -> list[str]:
        """What the chosen conditions (K,) are called."""
        chosen = self.variants[np.arange(len(self.variants)), variant]
        return [self.profile.name(int(each)) for each in chosen]


def from_requests(requests: Sequence[DenoisingRequest], system: DenoisingSystem) -> Asked:
    """The problem of a planner's call; PlanningError for no request, or one that cannot be."""
    optional = ("name", "condition")
    users = [{key: value for key, value in asdict(one).items() if value or key not in optional} for one in requests]
    edge = {name: getattr(system, name) for name in EDGE}
    return asked({"users": users, **edge}, system.profile, joint=system.joint)


def load(path: Path, profile: ConditionProfile, *, joint: bool) -> Asked:
    """Requests of a JSON file. Raises PlanningError for a file or field that is missing or wrong."""
    try:
        facts = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, json.JSONDecodeError, UnicodeDecodeError) as error:
        raise PlanningError(
            f"{path} cannot be read as JSON ({error}); `fedkd plan denoising --example` prints such a file"
        ) from error
    return asked(facts, profile, joint=joint)


def asked(facts: Any, profile: ConditionProfile, *, joint: bool) -> Asked:
    """A problem from {"edge_steps": …, "users": [{…}, …]}.

    A user without `condition` gets one by VCE, or with `joint` keeps all of the profile's to choose from.
    """
    if not isinstance(facts, Mapping) or not isinstance(facts.get("users"), list) or not facts["users"]:
        raise PlanningError('the requests need "users": a list with at least one; see `fedkd plan denoising --example`')
    for key in facts:
        if key not in (*EDGE, "users"):
            raise PlanningError(f"no field '{key}' of the requests; {nearest(str(key), EDGE)}")
    users = facts["users"]
    for number, user in enumerate(users, 1):
        if not isinstance(user, Mapping):
            raise PlanningError(f"user {number} is {user!r}; give an object with {', '.join(NUMBERS)}")
        for key in user:
            if key not in USER:
                raise PlanningError(f"user {number}: no field '{key}'; {nearest(str(key), USER)}")
    columns: dict[str, Any] = {
        name: np.array([_number(user, name, at) for at, user in enumerate(users, 1)]) for name in NUMBERS
    }
    rest: dict[str, Any] = {name: _number(facts, name, 0) for name in EDGE if name in facts}
    for name in ("edge_steps", "latents_bytes", "image_bytes", "least_edge_steps"):
        if name in rest and rest[name].is_integer():
            rest[name] = int(rest[name])
    extraction = np.array(
        [_number(user, "extraction_s", at) if "extraction_s" in user else 0.0 for at, user in enumerate(users, 1)]
    )
    preference = columns.pop("preference")
    everything = np.arange(len(profile.conditions))
    if joint:
        variants = np.broadcast_to(everything, (len(users), len(everything)))
    else:
        steps = min(ASSUMED_STEPS, profile.most_steps)
        chosen = vce(ConditionProblem(profile, preference, columns["quality_floor"], columns["up_bps"], steps))
        named = [_named(user, profile, at) for at, user in enumerate(users, 1)]
        variants = np.array([own if own is not None else int(ours) for own, ours in zip(named, chosen, strict=True)])
        variants = variants[:, None]
    quality = profile.quality(preference)[np.arange(len(users))[:, None], variants]
    names = tuple(str(user.get("name", f"user {at}")) for at, user in enumerate(users, 1))
    problem = DenoisingProblem(
        quality=quality,
        up_bytes=profile.size_bytes[variants],
        extraction_s=extraction,
        names=names,
        **columns,
        **rest,
    )
    return Asked(problem, profile, variants)


def _number(facts: Mapping[str, Any], name: str, user: int) -> float:
    who = f"user {user}: " if user else ""
    if name not in facts:
        raise PlanningError(f"{who}{name} is missing; give {', '.join(NUMBERS)}")
    value = facts[name]
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise PlanningError(f"{who}{name}={value!r} is no number")
    return float(value)


def _named(user: Mapping[str, Any], profile: ConditionProfile, number: int) -> int | None:
    """The profile's variant nearest to the user's own condition, or None where the user names none."""
    if "condition" not in user:
        return None
    here = np.flatnonzero([name == user["condition"] for name in profile.conditions])
    if not here.size:
        known = tuple(dict.fromkeys(profile.conditions))
        raise PlanningError(
            f"user {number}: no condition '{user['condition']}'; {nearest(str(user['condition']), known)}"
        )
    resolution = _number(user, "resolution", number) if "resolution" in user else 1.0
    level = _number(user, "level", number) if "level" in user else 1.0
    apart = np.hypot(profile.resolution[here] - resolution, profile.level[here] - level)
    return int(here[apart.argmin()])
