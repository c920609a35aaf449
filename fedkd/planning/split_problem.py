"""One device, one edge, one picture: what a split is chosen for, and what counts."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np

from fedkd.planning.machines import Device, EdgeQueue, Link, ModelCost, PlanningError, require
from fedkd.planning.system import ORDERS


@dataclass(frozen=True)
class Weights:
    """What a second, a joule and quality count for (EUCI Eq. 8), each term in units of a stated reference.

    Delay and energy are shares of `delay_reference_s` and `energy_reference_j` (None: of what the edge alone
    would take), quality of what the edge's model draws. Quality cancels where both ends run the same model.
    """

    delay: float = 0.5
    energy: float = 0.5
    quality: float = 0.0
    delay_reference_s: float | None = None
    energy_reference_j: float | None = None

    def check(self) -> None:
        """PlanningError unless all are at least 0 and finite, and one is more."""
        values = (self.delay, self.energy, self.quality)
        if not all(value >= 0 for value in values) or not 0 < sum(values) < math.inf:
            raise PlanningError(f"weights={values} must be finite, not negative and not all 0")
        for field in ("delay_reference_s", "energy_reference_j"):
            value = getattr(self, field)
            if value is not None:
                require(f"weights.{field}", value)


NO_QUEUE, EVEN = EdgeQueue(), Weights()


@dataclass(frozen=True)
class SplitSystem:
    """One device, one edge and the model they share (`device_unet_*`: the device's own, smaller UNet).

    `device_quality` is the quality of a picture that the device's UNet draws alone, the edge's being 1; in
    between it is taken as linear in the device's share of the steps.
    """

    model: ModelCost
    device: Device
    edge: Device
    link: Link
    backhaul: Link | None = None
    queue: EdgeQueue = NO_QUEUE
    cold_device: bool = False
    edge_miss: bool = False
    device_unet_flop: float | None = None
    device_unet_bytes: int | None = None
    device_quality: float = 1.0

    def __post_init__(self) -> None:
        require("device_quality", self.device_quality, zero=True)
        for field in ("device_unet_flop", "device_unet_bytes"):
            value = getattr(self, field)
            if value is not None:
                require(field, value)


@dataclass(frozen=True)
class SplitRequest:
    """One picture to be split, its limits (EUCI Eq. 10: TL_max, TC_max) and what counts (`weights`).

    `private_steps`: the device decodes and does at least so many of the last steps itself, so that the edge
    never holds the finished picture. `most_device_steps` bounds the device's share. `quality` (T+1,) is the
    measured quality with 0 to T steps on the device; without it, it follows from the system's `device_quality`.
    """

    num_inference_steps: int
    guidance: bool = False
    orders: tuple[str, ...] = ORDERS
    decode: str | None = None
    delay_limit_s: float | None = None
    energy_limit_j: float | None = None
    private_steps: int = 0
    most_device_steps: int | None = None
    weights: Weights = EVEN
    quality: tuple[float, ...] | None = None

    def __post_init__(self) -> None:
        self.weights.check()
        if self.num_inference_steps < 1:
            raise PlanningError(f"num_inference_steps={self.num_inference_steps} is too few; give at least 1")
        if self.quality is not None and (
            len(self.quality) != self.num_inference_steps + 1 or not np.isfinite(self.quality).all()
        ):
            wanted = self.num_inference_steps + 1
            raise PlanningError(f"quality has {len(self.quality)} values; give {wanted} finite ones, for 0 to T steps")
        if not self.orders:
            raise PlanningError(f"orders={self.orders!r} is empty; give one of {', '.join(ORDERS)}")
        for field in ("delay_limit_s", "energy_limit_j"):
            value = getattr(self, field)
            if value is not None:
                require(field, value)
        for field in ("private_steps", "most_device_steps"):
            if (getattr(self, field) or 0) < 0:
                raise PlanningError(f"{field}={getattr(self, field)} must not be negative")
        if self.private_steps > self.num_inference_steps:
            raise PlanningError(f"private_steps={self.private_steps} is more than {self.num_inference_steps} in all")
