"""How many steps the device takes, and who goes first: EUCI's question, answered by trying every split."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

from fedkd.planning.system import ORDERS, Cost, Device, Link, ModelCost, PlanningError, cost


@dataclass(frozen=True)
class Weights:
    """What a second and a joule count for, each as a share of what the edge alone would take (EUCI Eq. 8).

    Quality cancels: the same model on both ends draws the same picture.
    """

    delay: float = 0.5
    energy: float = 0.5


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
) -> Split:
    """The split of least weighted delay and energy, by exact enumeration of `device_steps` × `order`.

    With `delay_limit_s` the least energy among the splits that keep to it, the fastest where none does.
    `device_unet_flop` is one step of the device's own, smaller denoiser. `most_device_steps` bounds its
    share (0: it cannot take part). Ties go to fewer steps on the device, then to the first of `orders`.
    Raises PlanningError when there is nothing to choose from.
    """
    weights = weights or Weights()
    if not orders:
        raise PlanningError(f"orders={orders!r} is empty; give one of {', '.join(ORDERS)}")
    if min(weights.delay, weights.energy) < 0 or weights.delay + weights.energy <= 0:
        raise PlanningError(f"weights={weights} must not be negative nor both 0")
    if delay_limit_s is not None and not delay_limit_s > 0:
        raise PlanningError(f"delay_limit_s={delay_limit_s} must be positive")
    most = num_inference_steps if most_device_steps is None else min(most_device_steps, num_inference_steps)
    if most < 0:
        raise PlanningError(f"most_device_steps={most_device_steps} must not be negative")

    def price(device_steps: int, order: str) -> Cost:
        found = cost(
            model,
            device,
            edge,
            link,
            num_inference_steps=num_inference_steps,
            device_steps=device_steps,
            guidance=guidance,
            order=order,
            decode=decode,
            cold_device=cold_device,
        )
        if device_unet_flop is None:
            return found
        saved_flop = device_steps * (2 if guidance else 1) * (model.unet_flop - device_unet_flop)
        saved_s = saved_flop / device.flops_per_s
        return replace(
            found,
            delay_s=found.delay_s - saved_s,
            compute_s=found.compute_s - saved_s,
            energy_j=found.energy_j - saved_s * device.watts,
        )

    every = [(steps, order, price(steps, order)) for steps in range(most + 1) for order in orders]
    alone = every[0][2]
    if delay_limit_s is None:
        chosen = min(every, key=lambda each: _weighed(each[2], alone, weights))
    elif within := [each for each in every if each[2].delay_s <= delay_limit_s]:
        chosen = min(within, key=lambda each: (each[2].energy_j, each[2].delay_s))
    else:
        chosen = min(every, key=lambda each: each[2].delay_s)
    return Split(*chosen, reasons=_reasons(chosen, every, num_inference_steps, delay_limit_s, weights))


def _weighed(found: Cost, alone: Cost, weights: Weights) -> float:
    return weights.delay * found.delay_s / alone.delay_s + weights.energy * found.energy_j / alone.energy_j


def _reasons(
    chosen: tuple[int, str, Cost],
    every: Sequence[tuple[int, str, Cost]],
    total: int,
    delay_limit_s: float | None,
    weights: Weights,
) -> tuple[str, ...]:
    steps, order, found = chosen
    alone = every[0][2]
    share = f"{steps} of {total} steps on the device" + (f", {order}" if 0 < steps < total else "")
    if delay_limit_s is None:
        why = f"the least of {weights.delay:g} x delay + {weights.energy:g} x energy, each beside the edge alone"
    elif found.delay_s <= delay_limit_s:
        why = f"the least energy within {delay_limit_s:g} s"
    else:
        why = f"no split keeps to {delay_limit_s:g} s, and this is the fastest"
    reasons = [f"{share}: {why}", f"it takes {found.delay_s:.3g} s and {found.energy_j:.3g} J (estimated)"]
    if steps:
        reasons.append(f"the edge alone takes {alone.delay_s:.3g} s and {alone.energy_j:.3g} J")
    fullest = min((each for each in every if each[0] == every[-1][0]), key=lambda each: each[2].delay_s)
    if fullest[0] > steps:
        reasons.append(
            f"{fullest[0]} steps on the device would take {fullest[2].delay_s:.3g} s and {fullest[2].energy_j:.3g} J"
        )
    return tuple(reasons)
