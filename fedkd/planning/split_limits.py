"""Which splits keep to a request's limits, and what to tell the one whose limits nothing can meet."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from fedkd.planning.rounding import above
from fedkd.planning.system import CostTable, PlanningError

if TYPE_CHECKING:
    from fedkd.planning.split_problem import SplitRequest, SplitSystem


def allowed(request: SplitRequest, system: SplitSystem, steps: Any, table: CostTable, *, lenient: bool = False) -> Any:
    """The splits (M,) that keep to every limit; PlanningError names a limit that nothing can meet, and what would do.

    `lenient` gives all that keep to the others where `delay_limit_s` cannot be met.
    """
    keep = _possible(request, system, steps, table)
    in_time = within(table.delay_s, request.delay_limit_s)
    if lenient and not (keep & in_time).any():
        in_time = np.ones_like(in_time)
    in_budget = within(table.energy_j, request.energy_limit_j)
    if (keep & in_time & in_budget).any():
        return keep & in_time & in_budget
    least_s, least_j = table.delay_s[keep].min(), table.energy_j[keep].min()
    if not (keep & in_time).any():
        raise PlanningError(f"delay_limit_s={request.delay_limit_s:g} cannot be met; give at least {above(least_s)} s")
    if not (keep & in_budget).any():
        raise PlanningError(
            f"energy_limit_j={request.energy_limit_j:g} cannot be met; give at least {above(least_j)} J"
        )
    raise PlanningError(
        f"delay_limit_s={request.delay_limit_s:g} and energy_limit_j={request.energy_limit_j:g} cannot both be met; "
        f"give at least {above(table.delay_s[keep & in_budget].min())} s "
        f"or {above(table.energy_j[keep & in_time].min())} J"
    )


def within(values: Any, limit: float | None) -> Any:
    """Which values keep to a limit; all to none."""
    return np.ones(len(values), dtype=bool) if limit is None else values <= limit


def _possible(request: SplitRequest, system: SplitSystem, steps: Any, table: CostTable) -> Any:
    """The splits that share, privacy, memory and the edge's load allow."""
    most = request.num_inference_steps if request.most_device_steps is None else request.most_device_steps
    keep = steps <= most
    if request.private_steps:
        keep = _narrowed(
            keep,
            (steps >= request.private_steps) & ~table.edge_sees_image,
            f"private_steps={request.private_steps}: no split left ends on the device; "
            "allow order edge_first with decoding on the device, or more device steps",
        )
    held = system.device.memory_bytes
    least = table.device_bytes[keep].min()
    text = f"{system.device.name}: memory_bytes={held:g} cannot be met; give at least {least:.0f}"
    keep = _narrowed(keep, table.device_bytes <= held, text)
    rate, served_s = system.queue.arrivals_per_s, table.edge_s[keep].min() * system.queue.slowdown
    fits = f"; give less than {1 / served_s:.4g}" if served_s > 0 else ""
    return _narrowed(keep, np.isfinite(table.delay_s), f"queue: arrivals_per_s={rate:g} overloads the edge{fits}")


def _narrowed(keep: Any, rule: Any, otherwise: str) -> Any:
    if not (keep & rule).any():
        raise PlanningError(otherwise)
    return keep & rule
