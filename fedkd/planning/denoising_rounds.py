"""Rounds of requests as in VCE/DDC's experiments (Table I), with every value that the paper leaves open as a field."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from fedkd.planning.condition import ConditionProblem, cheapest, vce
from fedkd.planning.denoising_problem import IMAGE_BYTES, LATENTS_BYTES, DenoisingProblem
from fedkd.planning.quality import ConditionProfile
from fedkd.planning.system import PlanningError

Array = np.ndarray

RAW_IMAGE_BYTES = 335_000  # the mean of VCE Fig. 10


@dataclass(frozen=True)
class Setting:
    """Table I; below the line, what it leaves open.

    With `assumed_steps` = 20 and `preference` in .1...9 five users come out as the paper's. Eleven users share
    the same 60 edge steps, so VCE must expect fewer: with 15 (60/11, and the 9 that a device able to finish does
    in the mean) the acceptance values for eleven users come out, with 20 they do not.
    """

    device_step_s: tuple[float, ...] = (1.1, 0.44, 0.22, 0.33, 0.55)
    device_steps: tuple[int, ...] = (1, 6, 12, 6, 12)
    edge_steps: int = 60
    quality_floor: tuple[float, float] = (0.6, 0.8)
    bandwidth_bps: tuple[float, float] = (5e6, 20e6)
    # ----
    preference: tuple[float, float] = (0.1, 0.9)
    assumed_steps: int = 20
    image_bytes: int = IMAGE_BYTES
    latents_bytes: int = LATENTS_BYTES


ELEVEN_USERS = Setting(assumed_steps=15)


@dataclass(frozen=True)
class Round:
    """K requests that arrive together; every array is (K,)."""

    setting: Setting
    profile: ConditionProfile
    preference: Array
    quality_floor: Array
    up_bps: float
    down_bps: float

    @property
    def users(self) -> int:
        """K."""
        return len(self.preference)

    def conditions(self, method: str = "vce") -> Array:
        """(K,) variants chosen before the steps are known, by `vce` (Algorithms 1-2) or `exact`."""
        problem = ConditionProblem(
            self.profile, self.preference, self.quality_floor, self.up_bps, self.setting.assumed_steps
        )
        return vce(problem) if method == "vce" else cheapest(problem)

    def given(self, variants: Array, up_bytes: float | None = None) -> DenoisingProblem:
        """P2: steps for users whose conditions are chosen; `up_bytes` if they send something else instead."""
        wanted = self.preference[:, None]
        quality = wanted * self.profile.perceptual[variants] + (1 - wanted) * self.profile.prompt[variants]
        size = self.profile.size_bytes[variants] if up_bytes is None else np.full(self.users, up_bytes)
        return self._problem(quality[:, None], size[:, None], 0)

    def joint(self, least_edge_steps: int = 1) -> DenoisingProblem:
        """P0: conditions and steps together; at least one step at the edge, the paper's o_k > 0, by default."""
        sizes = np.broadcast_to(self.profile.size_bytes, (self.users, len(self.profile.size_bytes)))
        return self._problem(self.profile.quality(self.preference), sizes, least_edge_steps)

    def _problem(self, quality: Array, up_bytes: Array, least_edge_steps: int) -> DenoisingProblem:
        setting = self.setting
        kind = np.arange(self.users) % len(setting.device_steps)  # devices in turn, as for VCE Fig. 14
        return DenoisingProblem(
            quality=quality,
            up_bytes=up_bytes,
            quality_floor=self.quality_floor,
            device_step_s=np.array(setting.device_step_s)[kind],
            device_steps=np.array(setting.device_steps)[kind],
            up_bps=np.array(self.up_bps),
            down_bps=np.array(self.down_bps),
            edge_steps=setting.edge_steps,
            image_bytes=setting.image_bytes,
            latents_bytes=setting.latents_bytes,
            least_edge_steps=least_edge_steps,
        )


def draw(profile: ConditionProfile, rng: np.random.Generator, users: int = 5, setting: Setting | None = None) -> Round:
    """A random round: preferences and floors a user, one bandwidth up and one down a round."""
    if users < 1:
        raise PlanningError(f"users={users} leaves nobody to plan for; give at least 1")
    setting = setting or Setting()
    preference, floor = rng.uniform(*setting.preference, users), rng.uniform(*setting.quality_floor, users)
    up_bps, down_bps = rng.uniform(*setting.bandwidth_bps, 2)
    return Round(setting, profile, preference, floor, float(up_bps), float(down_bps))
