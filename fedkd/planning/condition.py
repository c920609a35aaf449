"""Which visual condition, and how compressed: VCE's Algorithms 1-2 and the exact choice beside them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, fields
from typing import Any

import numpy as np

from fedkd.planning.denoising_problem import DELAY_LIMIT_S, DELAY_WEIGHT, TOLERANCE, PerUser
from fedkd.planning.plan import Plan
from fedkd.planning.quality import STRUCTURAL, ConditionProfile
from fedkd.planning.rounding import above, below
from fedkd.planning.system import PlanningError

Array = np.ndarray

METHODS = ("exact", "vce")
ASSUMED_STEPS = 20  # T in Eq. 16; the paper leaves it open


@dataclass(frozen=True)
class ConditionProblem:
    """K users who choose from a profile's V conditions before anybody knows their steps (VCE problem P1).

    `preference` (K,) in 0..1 is for perceptual similarity; `quality_floor` (K,) is Q̃_k; `up_bps` (K,);
    `steps` is the T that Eq. 16 takes as given; `extraction_s` (K,) is L⁰; `rest_s` is what else the delay
    limit must hold (the steps, the way down). Raises PlanningError for what cannot be.
    """

    profile: ConditionProfile
    preference: PerUser
    quality_floor: PerUser
    up_bps: PerUser
    steps: int = ASSUMED_STEPS
    delay_limit_s: float = DELAY_LIMIT_S
    extraction_s: PerUser = 0.0
    rest_s: float = 0.0
    delay_weight: float = DELAY_WEIGHT

    def __post_init__(self) -> None:
        preference = np.atleast_1d(np.asarray(self.preference, float))
        if preference.size == 0:
            raise PlanningError("preference=[] names no user; give at least one")
        object.__setattr__(self, "preference", preference)
        for name in ("quality_floor", "up_bps", "extraction_s"):
            try:
                values = np.broadcast_to(np.asarray(getattr(self, name), float), preference.shape)
            except ValueError as error:
                raise PlanningError(f"{name} must be one number, or one a user ({preference.size})") from error
            if not np.isfinite(values).all():
                raise PlanningError(f"{name} holds NaN or infinity; give a number for every user")
            object.__setattr__(self, name, values)
        if self.up_bps.min() <= 0:
            raise PlanningError(f"up_bps={np.min(self.up_bps):g} must be positive")
        if not self.delay_limit_s > 0:
            raise PlanningError(f"delay_limit_s={self.delay_limit_s} must be positive")
        for name in ("extraction_s", "rest_s", "delay_weight"):
            least = np.min(getattr(self, name))
            if not least >= 0:
                raise PlanningError(f"{name}={least:g} must be 0 or more")
        if not 1 <= self.steps <= self.profile.most_steps:
            raise PlanningError(f"steps={self.steps} is not in the profile; give 1 to {self.profile.most_steps}")

    @property
    def quality(self) -> Array:
        """(K, V): Q_k under every condition after `steps`."""
        wanted = self.preference[:, None]
        if not ((wanted >= 0) & (wanted <= 1)).all():
            raise PlanningError(f"preference={self.preference} must lie in 0..1: 1 is perceptual similarity alone")
        found = wanted * self.profile.perceptual[:, self.steps] + (1 - wanted) * self.profile.prompt[:, self.steps]
        return np.asarray(found)

    @property
    def delay_s(self) -> Array:
        """(K, V): L¹ (Eq. 2), and what else the limit must hold."""
        sent = 8 * self.profile.size_bytes / self.up_bps[:, None]
        return np.asarray(self.extraction_s[:, None] + sent + self.rest_s)


def pareto_front(score: Array, size_bytes: Array) -> Array:
    """(V,) mask of what no other beats in both score and size (Eq. 18; strict in both, as printed)."""
    beaten = (score[None] > score[:, None]) & (size_bytes[None] < size_bytes[:, None])
    return np.logical_not(beaten.any(axis=1))


def search_path(profile: ConditionProfile, front: Array, condition: str) -> Array:
    """Variants that Algorithm 2 tries, in order, for one condition; `front` (V,) marks its Pareto set.

    CANNY raises the resolution to its end, then the quality; DEPTH the quality, then the resolution; others
    follow the front. A pair off the front is looked up in the whole profile, and skipped if not there.
    """
    here = np.array([name == condition for name in profile.conditions])
    members = np.flatnonzero(front & here)
    members = members[np.lexsort((profile.level[members], profile.resolution[members]))]
    place = {(profile.resolution[v], profile.level[v]): int(v) for v in np.flatnonzero(here)}
    alpha, beta = profile.resolution[members[0]], profile.level[members[0]]
    most_alpha, most_beta = profile.resolution[here].max(), profile.level[here].max()
    path = [int(members[0])]
    for variant in members:
        new_alpha, new_beta = profile.resolution[variant], profile.level[variant]
        if condition == "canny":
            alpha = max(alpha, new_alpha)
            beta = new_beta if alpha == most_alpha else beta
        elif condition == "depth":
            beta = max(beta, new_beta)
            alpha = new_alpha if beta == most_beta else alpha
        else:
            alpha, beta = new_alpha, new_beta
        found = place.get((alpha, beta))
        if found is not None and found != path[-1]:
            path.append(found)
    return np.array(path)


def vce(problem: ConditionProblem, structural: Sequence[str] = STRUCTURAL) -> Array:
    """(K,) variants by Algorithms 1-2: candidates by preference, the first of a path that will do, most utility.

    Users whose preference leaves no candidate in the profile choose among all conditions.
    """
    profile = problem.profile
    quality, delay = problem.quality, problem.delay_s
    enough = (quality >= problem.quality_floor[:, None] - TOLERANCE) & (delay <= problem.delay_limit_s + TOLERANCE)
    utility = quality - problem.delay_weight * delay
    names = list(dict.fromkeys(profile.conditions))
    chosen = np.zeros(len(problem.preference), int)
    for similar in (True, False):
        users = np.flatnonzero((problem.preference > 0.5) == similar)
        candidates = [name for name in names if (name in structural) == similar] or names
        scores = (profile.perceptual if similar else profile.prompt)[:, problem.steps]
        best = np.full(len(users), -np.inf)
        for name in candidates:
            key = ("path", name, similar, problem.steps)
            if key not in profile.remembered:
                here = np.array([each == name for each in profile.conditions])
                front = np.zeros(len(here), bool)
                front[here] = pareto_front(scores[here], profile.size_bytes[here])
                profile.remembered[key] = search_path(profile, front, name)
            path = profile.remembered[key]
            stops = enough[np.ix_(users, path)]
            first = np.where(stops.any(axis=1), stops.argmax(axis=1), len(path) - 1)
            variant = path[first]
            better = utility[users, variant] > best
            chosen[users[better]] = variant[better]
            best = np.maximum(best, utility[users, variant])
    return chosen


def cheapest(problem: ConditionProblem) -> Array:
    """(K,) variants: the smallest that meets the floor and the delay limit, the better of equals; exact.

    Where none does, the highest quality within the delay limit, and where that has none either, the smallest.
    """
    quality, delay, size = problem.quality, problem.delay_s, problem.profile.size_bytes
    timely = delay <= problem.delay_limit_s + TOLERANCE
    enough = timely & (quality >= problem.quality_floor[:, None] - TOLERANCE)
    smallest = np.where(enough, size, np.inf).min(axis=1, keepdims=True)
    met = np.where(enough & (size == smallest), quality, -np.inf)
    best = np.where(timely, quality, -np.inf)
    last = np.where(timely.any(axis=1), best.argmax(axis=1), size.argmin())
    return np.where(enough.any(axis=1), met.argmax(axis=1), last)


@dataclass(frozen=True)
class ConditionRequest:
    """One user of a `ConditionProblem`."""

    preference: float
    quality_floor: float
    up_bps: float
    extraction_s: float = 0.0


@dataclass(frozen=True)
class ConditionSystem:
    """What all users of a `ConditionProblem` share, and the `method` of `choose`."""

    profile: ConditionProfile
    steps: int = ASSUMED_STEPS
    delay_limit_s: float = DELAY_LIMIT_S
    rest_s: float = 0.0
    delay_weight: float = DELAY_WEIGHT
    method: str = "exact"
    edge: str = "edge"


def plan(requests: Sequence[ConditionRequest], system: ConditionSystem) -> list[Plan]:
    """One plan a request, in their order; PlanningError for no request, or limits that nothing can meet."""
    names = [each.name for each in fields(ConditionRequest)]
    columns: dict[str, Any] = {name: np.array([getattr(one, name) for one in requests]) for name in names}
    shared = {each.name: getattr(system, each.name) for each in fields(ConditionSystem)}
    method, edge = shared.pop("method"), shared.pop("edge")
    return choose(ConditionProblem(**columns, **shared), method, edge=edge)[1]


def choose(problem: ConditionProblem, method: str = "exact", *, edge: str = "edge") -> tuple[Array, list[Plan]]:
    """Everyone's variant (K,) and plan with its reasons, by `exact` (`cheapest`) or `vce` (Algorithms 1-2).

    Raises PlanningError when no user's floor, or no user's delay limit, can be met, with what would do.
    """
    if method not in METHODS:
        raise PlanningError(f"method={method!r} is not known; give {' or '.join(METHODS)}")
    quality, delay = problem.quality, problem.delay_s
    highest = quality.max(axis=1)
    nearest = int((problem.quality_floor - highest).argmin())
    if problem.quality_floor[nearest] > highest[nearest] + TOLERANCE:
        raise PlanningError(
            f"quality_floor={problem.quality_floor[nearest]:g} is above what any condition reaches in "
            f"{problem.steps} steps; give at most {below(float(highest[nearest]))}, or take more steps"
        )
    if delay.min() > problem.delay_limit_s + TOLERANCE:
        raise PlanningError(
            f"delay_limit_s={problem.delay_limit_s:g} is less than the smallest condition takes; the least that "
            f"would do is {above(float(delay.min()))}"
        )
    chosen = cheapest(problem) if method == "exact" else vce(problem)
    return chosen, [_plan(problem, user, int(variant), edge, method) for user, variant in enumerate(chosen)]


def _plan(problem: ConditionProblem, user: int, variant: int, edge: str, method: str) -> Plan:
    profile = problem.profile
    quality, delay = float(problem.quality[user, variant]), float(problem.delay_s[user, variant])
    floor = float(problem.quality_floor[user])
    why = "the smallest that is good enough" if method == "exact" else "as VCE's Algorithms 1-2 choose"
    reasons = [
        f"{profile.name(variant)}: {profile.size_bytes[variant] / 1e3:.3g} kB, {why}",
        f"quality {quality:.3f} of {floor:.3f} asked for after {problem.steps} steps (estimated)",
    ]
    if quality < floor - TOLERANCE:
        reasons.append("no condition reaches the quality asked for")
    return Plan(
        edge=edge,
        num_inference_steps=problem.steps,
        device_steps=0,
        order="edge_first",
        condition=profile.name(variant),
        reasons=tuple(reasons),
        delay_s=delay,
        quality=quality,
    )
