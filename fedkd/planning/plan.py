"""What a planner decides for one request: which edge, how many steps, and who does which of them."""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass
from typing import Any

from fedkd.planning.system import ORDERS, PlanningError


@dataclass(frozen=True)
class Plan:
    """One request's plan, what it is predicted to cost (s, J) and to be worth, and why, in sentences.

    The device does `device_steps` of `num_inference_steps`; `order` says who goes first. `condition` names a
    visual condition, '' for none. `delay_s`, `energy_j` and `quality` are NaN where the planner does not
    predict them. Raises PlanningError for a plan that nobody could carry out.
    """

    edge: str
    num_inference_steps: int
    device_steps: int
    order: str
    condition: str = ""
    reasons: tuple[str, ...] = ()
    delay_s: float = math.nan
    energy_j: float = math.nan
    quality: float = math.nan

    def __post_init__(self) -> None:
        if self.num_inference_steps < 1:
            raise PlanningError(f"num_inference_steps={self.num_inference_steps} is too few; give at least 1")
        if not 0 <= self.device_steps <= self.num_inference_steps:
            raise PlanningError(
                f"device_steps={self.device_steps} is out of range; give 0 to {self.num_inference_steps}"
            )
        if self.order not in ORDERS:
            raise PlanningError(f"order={self.order!r} is not known; give {' or '.join(ORDERS)}")

    @property
    def edge_steps(self) -> int:
        """Steps that the edge does."""
        return self.num_inference_steps - self.device_steps

    def facts(self) -> dict[str, Any]:
        """The plan as JSON can hold it: None for what is not predicted."""
        found = asdict(self) | {"edge_steps": self.edge_steps, "reasons": list(self.reasons)}
        return {
            name: None if isinstance(value, float) and math.isnan(value) else value for name, value in found.items()
        }
