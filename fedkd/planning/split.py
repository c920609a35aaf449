"""How many steps the device takes, and who goes first: EUCI's question, answered by trying every split."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from fedkd.planning.pareto import nondominated
from fedkd.planning.plan import Plan
from fedkd.planning.split_limits import allowed
from fedkd.planning.split_problem import SplitRequest, SplitSystem, Weights
from fedkd.planning.split_reasons import reasons
from fedkd.planning.system import ORDERS, Cost, CostTable, Device, EdgeQueue, Link, ModelCost, cost_table

__all__ = ["Choice", "Split", "SplitRequest", "SplitSystem", "Weights", "best_split", "choose", "plan"]


@dataclass(frozen=True)
class Choice:
    """Every split with its cost, which ones keep to the limits, which are Pareto-optimal, and the chosen one.

    Arrays are (M,): `device_steps`, `quality`, `loss` (the weighted sum that is minimised), `allowed`, and
    `front` (allowed, and no other allowed split is better in delay, energy and quality at once).
    """

    request: SplitRequest
    device_steps: Any
    orders: tuple[str, ...]
    table: CostTable
    quality: Any
    loss: Any
    allowed: Any
    front: Any
    chosen: int

    def plan(self, edge: str) -> Plan:
        """The chosen split as a plan for `edge`."""
        at = self.chosen
        return Plan(
            edge=edge,
            num_inference_steps=self.request.num_inference_steps,
            device_steps=int(self.device_steps[at]),
            order=self.orders[at],
            reasons=reasons(self, self.request.weights, self.request.delay_limit_s),
            delay_s=float(self.table.delay_s[at]),
            energy_j=float(self.table.energy_j[at]),
            quality=float(self.quality[at]),
        )


def plan(requests: Sequence[SplitRequest], system: SplitSystem) -> list[Plan]:
    """The best split of each request, exactly; PlanningError names the limit that nothing can meet."""
    known: dict[SplitRequest, Plan] = {}
    for request in requests:
        if request not in known:
            known[request] = choose(request, system).plan(system.edge.name)
    return [known[request] for request in requests]


def choose(request: SplitRequest, system: SplitSystem, *, lenient: bool = False) -> Choice:
    """The split of the greatest QoE (EUCI Eqs. 8-11) among all `device_steps` × `orders`, and their Pareto front.

    Ties go to the faster, then to fewer steps on the device, then to the first of `orders`. `lenient` takes
    the fastest split where `delay_limit_s` cannot be met, and nothing else. PlanningError otherwise.
    """
    total = request.num_inference_steps
    inner = range(1, total)
    pairs = [(0, request.orders[0]), *((t, order) for t in inner for order in request.orders)]
    pairs.append((total, request.orders[0]))
    steps, orders = np.asarray([t for t, _ in pairs]), tuple(order for _, order in pairs)
    table = price(request, system, steps, orders)
    quality = (
        1 - (1 - system.device_quality) * steps / total
        if request.quality is None
        else np.asarray(request.quality)[steps]
    )
    loss = weighed(table, quality, request.weights)
    keep = allowed(request, system, steps, table, lenient=lenient)
    late = request.delay_limit_s is not None and not (table.delay_s[keep] <= request.delay_limit_s).any()
    ranked = np.lexsort((table.delay_s, table.delay_s if late else loss))
    return Choice(
        request=request,
        device_steps=steps,
        orders=orders,
        table=table,
        quality=quality,
        loss=loss,
        allowed=keep,
        front=keep & nondominated(np.stack([table.delay_s, table.energy_j, -quality], axis=1), keep),
        chosen=int(ranked[keep[ranked]][0]),
    )


def price(request: SplitRequest, system: SplitSystem, steps: Any, orders: Sequence[str]) -> CostTable:
    """What the splits (steps[i], orders[i]) cost."""
    return cost_table(
        system.model,
        system.device,
        system.edge,
        system.link,
        num_inference_steps=request.num_inference_steps,
        device_steps=steps,
        orders=orders,
        guidance=request.guidance,
        decode=request.decode,
        cold_device=system.cold_device,
        edge_miss=system.edge_miss,
        backhaul=system.backhaul,
        queue=system.queue,
        device_unet_flop=system.device_unet_flop,
        device_unet_bytes=system.device_unet_bytes,
    )


def weighed(table: CostTable, quality: Any, weights: Weights) -> Any:
    """EUCI Eq. 8 turned round: w2·TL/TL_0 + w3·TC/TC_0 - w1·quality, (M,); split 0 is the edge alone."""
    delay_s = weights.delay_reference_s or _reference(table.delay_s)
    energy_j = weights.energy_reference_j or _reference(table.energy_j)
    lost = weights.delay * table.delay_s / delay_s if weights.delay else 0.0 * table.energy_j
    return lost + weights.energy * table.energy_j / energy_j - weights.quality * quality


def _reference(values: Any) -> float:
    """What the edge alone takes; the largest finite value where that is 0 or endless, and 1 where there is none."""
    usable = values[np.isfinite(values) & (values > 0)]
    if np.isfinite(values[0]) and values[0] > 0:
        return float(values[0])
    return float(usable.max()) if usable.size else 1.0


@dataclass(frozen=True)
class Split:
    """The chosen split with its cost, and why, in sentences for its user."""

    device_steps: int
    order: str
    cost: Cost
    reasons: tuple[str, ...]


def best_split(
    model: ModelCost,
    device: Device,
    edge: Device,
    link: Link,
    *,
    num_inference_steps: int,
    guidance: bool,
    orders: Sequence[str] = ORDERS,
    decode: str | None = None,
    cold_device: bool = False,
    device_unet_flop: float | None = None,
    most_device_steps: int | None = None,
    delay_limit_s: float | None = None,
    weights: Weights | None = None,
    queue: EdgeQueue | None = None,
) -> Split:
    """The split for a request that must be served: `choose` with a soft limit on delay, as the edge's `auto` asks.

    With `delay_limit_s` the least energy among the splits that keep to it, the fastest where none does, and
    `reasons` say so. `most_device_steps` bounds the device's share (0: it cannot take part). Raises
    PlanningError when there is nothing to choose from.
    """
    weights = weights or Weights()
    request = SplitRequest(
        num_inference_steps=num_inference_steps,
        guidance=guidance,
        orders=tuple(orders),
        decode=decode,
        delay_limit_s=delay_limit_s,
        most_device_steps=most_device_steps,
        weights=weights if delay_limit_s is None else Weights(delay=0.0, energy=1.0),
    )
    system = SplitSystem(
        model,
        device,
        edge,
        link,
        queue=queue or EdgeQueue(),
        cold_device=cold_device,
        device_unet_flop=device_unet_flop,
    )
    found = choose(request, system, lenient=True)
    at = found.chosen
    why = reasons(found, request.weights, delay_limit_s)
    return Split(int(found.device_steps[at]), found.orders[at], found.table.row(at), why)
