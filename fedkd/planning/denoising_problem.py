"""Who draws which steps under the edge's budget: the question (DDC problem P2) and what an answer is worth."""

from __future__ import annotations

from dataclasses import dataclass, field, fields
from typing import Any

import numpy as np

from fedkd.planning.system import PlanningError

Array = np.ndarray
PerUser = Any  # (K,) or one number for everyone; an array once checked

# Table I; what it leaves open is said in `fedkd.planning.denoising_rounds`.
EDGE_STEP_S = 0.11
EDGE_STEPS = 60
DELAY_LIMIT_S = 10.0
DELAY_WEIGHT = 0.01
PENALTIES = (0.15, 0.15, 0.6, 0.1)  # delta_1..delta_4 of Eq. 26
LATENTS_BYTES = 32_768
IMAGE_BYTES = 350_000  # the mean of VCE Fig. 10
TOLERANCE = 1e-12

OBJECTIVES = {
    "satisfied-bytes-utility": "most satisfied users, then fewest bytes, then most utility",
    "satisfied-utility": "most satisfied users, then most utility",
    "utility": "most utility (Eqs. 8 and 19), whoever is satisfied",
    "reward": "most of the learner's reward (Eq. 26) within the budget",
}


@dataclass(frozen=True)
class DenoisingProblem:
    """K users, each with V ways to be conditioned (V = 1 once the condition is chosen); SI units.

    `quality` (K, V, T+1): Q_k after 0..T steps in all; `up_bytes` (K, V): the condition's size;
    `quality_floor` (K,): Q̃_k; `device_step_s` (K,): one step of the device; `device_steps` (K,): C_k;
    `up_bps`, `down_bps` (K,): the link. `edge_steps` is C_E, `delay_weight` is eta, `extraction_s` (K,) is
    L⁰ of Eq. 2. A user with no step at the edge sends nothing, and one with no step of its own gets a whole
    picture. `least_edge_steps=1` is the paper's o_k > 0. Raises PlanningError for what cannot be.
    """

    quality: Array
    up_bytes: Array
    quality_floor: PerUser
    device_step_s: PerUser
    device_steps: PerUser
    up_bps: PerUser
    down_bps: PerUser
    extraction_s: PerUser = 0.0
    edge_step_s: float = EDGE_STEP_S
    edge_steps: int = EDGE_STEPS
    delay_limit_s: float = DELAY_LIMIT_S
    delay_weight: float = DELAY_WEIGHT
    latents_bytes: int = LATENTS_BYTES
    image_bytes: int = IMAGE_BYTES
    least_edge_steps: int = 0
    penalties: tuple[float, float, float, float] = PENALTIES
    names: tuple[str, ...] = field(default=())

    def __post_init__(self) -> None:
        quality = np.asarray(self.quality, float)
        quality = quality[:, None, :] if quality.ndim == 2 else quality
        if quality.ndim != 3 or quality.size == 0:
            raise PlanningError(f"quality has shape {np.shape(self.quality)}; give (users, conditions, steps + 1)")
        users, variants = quality.shape[:2]
        object.__setattr__(self, "quality", quality)
        up_bytes = np.asarray(self.up_bytes, float)
        up_bytes = up_bytes[:, None] if up_bytes.ndim == 1 and variants == 1 else up_bytes
        try:
            object.__setattr__(self, "up_bytes", np.ceil(np.broadcast_to(up_bytes, (users, variants))))
            for name in ("quality_floor", "device_step_s", "device_steps", "up_bps", "down_bps", "extraction_s"):
                values = np.broadcast_to(np.asarray(getattr(self, name), float), (users,))
                object.__setattr__(self, name, values)
        except ValueError as error:
            raise PlanningError(f"quality is for {users} users and {variants} conditions; {error}") from error
        self._check()
        object.__setattr__(self, "device_steps", self.device_steps.astype(int))

    def _check(self) -> None:
        for each in fields(self):
            value = getattr(self, each.name)
            if each.name not in ("names", "penalties") and not np.isfinite(value).all():
                raise PlanningError(f"{each.name} holds NaN or infinity; give a number for every user")
        for name in ("device_step_s", "up_bps", "down_bps", "edge_step_s", "delay_limit_s"):
            least = np.min(getattr(self, name))
            if least <= 0:
                raise PlanningError(f"{name}={least:g} must be positive")
        for name in ("up_bytes", "device_steps", "extraction_s", "delay_weight", "latents_bytes", "image_bytes"):
            least = np.min(getattr(self, name))
            if least < 0:
                raise PlanningError(f"{name}={least:g} must not be negative")
        if (self.device_steps != np.floor(self.device_steps)).any():
            raise PlanningError(f"device_steps={self.device_steps} must be whole numbers of steps")
        if self.most_steps < 1:
            raise PlanningError("quality ends at 0 steps; give it for at least 1")
        if self.least_edge_steps not in (0, 1):
            raise PlanningError(f"least_edge_steps={self.least_edge_steps} is not known; give 0 or 1")
        if isinstance(self.edge_steps, float) or self.edge_steps < 0:
            raise PlanningError(f"edge_steps={self.edge_steps} must be a whole number, at least 0")
        if len(self.names) not in (0, self.users):
            raise PlanningError(f"names={self.names} must name each of the {self.users} users, or none")

    @property
    def users(self) -> int:
        """K."""
        return self.quality.shape[0]

    @property
    def variants(self) -> int:
        """V."""
        return self.quality.shape[1]

    @property
    def most_steps(self) -> int:
        """The most steps in all that `quality` knows."""
        return self.quality.shape[2] - 1

    def name(self, user: int) -> str:
        """What to call a user in a sentence."""
        return self.names[user] if self.names else f"user {user + 1}"

    def down_bytes(self, edge: Array, device: Array) -> Array:
        """Bytes to the user: latents where both take part, a picture where the edge ends, else none (Eqs. 6-7)."""
        return np.where(edge > 0, np.where(device > 0, self.latents_bytes, self.image_bytes), 0.0)


@dataclass(frozen=True)
class Allocation:
    """An answer for K users and what it is worth; every array is (K,).

    `satisfied` is Q̃_k ≤ Q_k and L_k ≤ L̃ (Eqs. 14-15); `reward` is Eq. 26 with steps for FLOPs.
    """

    problem: DenoisingProblem
    edge_steps: Array
    device_steps: Array
    variant: Array
    quality: Array
    delay_s: Array
    up_bytes: Array
    down_bytes: Array
    satisfied: Array
    utility: Array

    @property
    def bytes_moved(self) -> float:
        """Bytes up and down of all users."""
        return float(self.up_bytes.sum() + self.down_bytes.sum())

    @property
    def key(self) -> tuple[int, float, float]:
        """(satisfied users, -bytes, utility): the larger key is the better answer."""
        return int(self.satisfied.sum()), -self.bytes_moved, float(self.utility.sum())

    @property
    def within_budget(self) -> bool:
        """Whether edge and devices keep to their budgets (Eqs. 12-13) and every user gets a picture."""
        problem = self.problem
        return bool(
            self.edge_steps.sum() <= problem.edge_steps
            and (self.device_steps <= problem.device_steps).all()
            and (self.edge_steps + self.device_steps >= 1).all()
            and (self.edge_steps >= problem.least_edge_steps).all()
        )

    @property
    def reward(self) -> float:
        """Eq. 26: utility less what each broken limit costs."""
        problem = self.problem
        edge, device, quality, delay = problem.penalties
        return float(
            self.utility.sum()
            - edge * max(0, self.edge_steps.sum() - problem.edge_steps)
            - device * np.maximum(0, self.device_steps - problem.device_steps).sum()
            - quality * np.maximum(0, problem.quality_floor - self.quality).sum()
            - delay * np.maximum(0, self.delay_s - problem.delay_limit_s).sum()
        )

    @property
    def round_delay_s(self) -> float:
        """Seconds for the whole round: the edge serves in series, devices side by side, and the mean of the sending."""
        problem = self.problem
        on_edge = problem.edge_step_s * self.edge_steps
        on_device = self.device_steps * problem.device_step_s
        return float(on_edge.sum() + on_device.max() + (self.delay_s - on_edge - on_device).mean())


def evaluate(problem: DenoisingProblem, edge_steps: Array, device_steps: Array, variant: Array | int = 0) -> Allocation:
    """What an answer is worth, whoever gave it; steps beyond what `quality` knows add nothing (Eqs. 2, 6-8)."""
    edge, device = np.asarray(edge_steps, int), np.asarray(device_steps, int)
    variant = np.broadcast_to(np.asarray(variant, int), (problem.users,))
    user = np.arange(problem.users)
    quality = problem.quality[user, variant, np.minimum(edge + device, problem.most_steps)]
    up = np.where(edge > 0, problem.up_bytes[user, variant], 0.0)
    down = problem.down_bytes(edge, device)
    delay = (
        problem.extraction_s
        + edge * problem.edge_step_s
        + device * problem.device_step_s
        + 8 * up / problem.up_bps
        + 8 * down / problem.down_bps
    )
    satisfied = (quality >= problem.quality_floor - TOLERANCE) & (delay <= problem.delay_limit_s + TOLERANCE)
    satisfied &= edge + device > 0
    utility = quality - problem.delay_weight * delay
    return Allocation(problem, edge, device, variant, quality, delay, up, down, satisfied, utility)
