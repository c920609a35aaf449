"""What every split of a picture would cost between an edge's model and a device, and which one the planner takes."""

from __future__ import annotations

import asyncio
from dataclasses import asdict, replace
from typing import Any, Literal, cast, get_args

from pydantic import BaseModel

from fedkd.inference.schedulers import SchedulerError, configured, fresh, scheduler_class
from fedkd.models.flops import model_cost
from fedkd.models.pipeline import DTYPES
from fedkd.planning.split import best_split
from fedkd.planning.system import Cost, Device, Link, ModelCost, cost
from fedkd.serving.errors import EdgeFault
from fedkd.serving.messages import Order
from fedkd.serving.models import Served

REMEMBERED = 64  # costs of so many models are kept


class Machine(BaseModel):
    """A side's speed (FLOP/s) and power while it computes (W)."""

    flops_per_s: float
    watts: float


class Line(BaseModel):
    """The way between the sides: bit/s and metres."""

    bandwidth_bps: float
    distance_m: float


class Costs(BaseModel):
    """Estimates by the number of steps on the device, 0 to `evaluations`: seconds and joules."""

    delay_s: list[float]
    energy_j: list[float]
    device_s: list[float]
    edge_s: list[float]
    network_s: list[float]


class Choice(BaseModel):
    """The split that the planner takes, and why."""

    device_steps: int
    order: Order
    delay_s: float
    energy_j: float
    reasons: list[str]


class SplitTable(BaseModel):
    """All splits of one picture; `evaluations` are those of the denoiser, which device and edge share.

    `work` is the planner's ModelCost. `measured_flops_per_s` is the edge's speed as its traffic has shown it.
    """

    model: str
    version: str
    digest: str
    scheduler: str
    num_inference_steps: int
    evaluations: int
    guidance_scale: float
    decode: Literal["edge", "device"]
    device: Machine
    edge: Machine
    link: Line
    measured_flops_per_s: float | None
    work: dict[str, int]
    costs: dict[Order, Costs]
    chosen: Choice


class ModelCosts:
    """The FLOPs and bytes of served models, each counted once; for use on one event loop."""

    def __init__(self) -> None:
        self._known: dict[tuple[str, str], ModelCost] = {}
        self._counting = asyncio.Lock()

    async def of(self, served: Served) -> ModelCost:
        """What one picture of this model takes; EdgeFault 501 for a model whose costs cannot be counted."""
        key = served.digest, served.dtype
        async with self._counting:
            if key not in self._known:
                if len(self._known) >= REMEMBERED:
                    self._known.pop(next(iter(self._known)))
                self._known[key] = await asyncio.to_thread(_count, served)
            return self._known[key]


def _count(served: Served) -> ModelCost:
    try:
        return ModelCost(**model_cost(served.pipe, min(served.resolution), int(DTYPES[served.dtype].itemsize)))
    except (AttributeError, KeyError, NotImplementedError, RuntimeError, TypeError, ValueError) as error:
        raise EdgeFault(
            501, f"the planner cannot count the work of {served.name!r}: {error}", param="model", code="no_costs"
        ) from error


def evaluations(served: Served, scheduler: str | None, num_inference_steps: int) -> tuple[str, int]:
    """The scheduler's class and the evaluations of the denoiser it takes: T, but 2T-1 for Heun and T+1 for PNDM.

    SchedulerError when it cannot be split or cannot take that many steps.
    """
    made = scheduler_class(scheduler or type(served.pipe.scheduler).__name__)
    config = configured(made, served.pipe.scheduler, {})
    arguments: dict[str, Any] = {"num_inference_steps": num_inference_steps}
    if config.get("use_dynamic_shifting"):
        arguments["mu"] = 1.0  # shifts the timesteps, not their number
    return made.__name__, len(fresh(made.__name__, config, arguments).timesteps)


def split_table(
    served: Served,
    work: ModelCost,
    device: Device,
    edge: Device,
    link: Link,
    *,
    num_inference_steps: int | None = None,
    guidance_scale: float | None = None,
    scheduler: str | None = None,
    decode: Literal["edge", "device"] = "edge",
    cold_device: bool = False,
    delay_limit_s: float | None = None,
    measured_flops_per_s: float | None = None,
) -> SplitTable:
    """Every split in both orders, and the planner's choice; what is None is left to the model's defaults.

    EdgeFault 422 for a scheduler or number of steps that cannot be.
    """
    steps = num_inference_steps or served.defaults.num_inference_steps
    scale = served.defaults.guidance_scale if guidance_scale is None else guidance_scale
    try:
        name, total = evaluations(served, scheduler, steps)
    except SchedulerError as error:
        param = "scheduler" if str(error).startswith("scheduler") else "steps"
        raise EdgeFault(422, str(error), param=param, code="invalid_value") from error
    plan: dict[str, Any] = {"num_inference_steps": total, "guidance": scale > 1, "decode": decode}
    plan["cold_device"] = cold_device
    chosen = best_split(work, device, edge, link, delay_limit_s=delay_limit_s, **plan)
    return SplitTable(
        model=served.name,
        version=served.version,
        digest=served.digest,
        scheduler=name,
        num_inference_steps=steps,
        evaluations=total,
        guidance_scale=scale,
        decode=decode,
        device=_machine(device),
        edge=_machine(edge),
        link=Line(**asdict(link)),
        measured_flops_per_s=measured_flops_per_s and _rounded(measured_flops_per_s),
        work={name: int(value) for name, value in asdict(work).items()},
        costs={order: _costs(work, device, edge, link, total, order, plan) for order in get_args(Order)},
        chosen=Choice(
            device_steps=chosen.device_steps,
            order=cast(Order, chosen.order),
            delay_s=_rounded(chosen.cost.delay_s),
            energy_j=_rounded(chosen.cost.energy_j),
            reasons=list(chosen.reasons),
        ),
    )


def _costs(
    work: ModelCost, device: Device, edge: Device, link: Link, total: int, order: str, plan: dict[str, Any]
) -> Costs:
    # A device of 1 W beside an edge of 0 W: its joules are its seconds.
    unit, still = replace(device, watts=1.0), replace(edge, watts=0.0)
    found: list[tuple[Cost, float]] = []
    for steps in range(total + 1):
        priced = cost(work, device, edge, link, device_steps=steps, order=order, **plan)
        alone = cost(work, unit, still, link, device_steps=steps, order=order, **plan)
        found.append((priced, alone.energy_j))
    return Costs(
        delay_s=[_rounded(each.delay_s) for each, _ in found],
        energy_j=[_rounded(each.energy_j) for each, _ in found],
        device_s=[_rounded(device_s) for _, device_s in found],
        edge_s=[_rounded(max(0.0, each.compute_s - device_s)) for each, device_s in found],
        network_s=[_rounded(each.network_s) for each, _ in found],
    )


def _machine(machine: Device) -> Machine:
    return Machine(flops_per_s=machine.flops_per_s, watts=machine.watts)


def _rounded(value: float) -> float:
    """Six digits: an estimate has no more, and the answer stays small."""
    return float(f"{value:.6g}")
