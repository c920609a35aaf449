"""Why a split was chosen, in sentences for the one whose picture it is."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from fedkd.planning.split import Choice
    from fedkd.planning.split_problem import Weights


def reasons(choice: Choice, weights: Weights, delay_limit_s: float | None) -> tuple[str, ...]:
    """What was chosen and by which rule, what it takes, and what the alternatives would have taken."""
    at, table, total = choice.chosen, choice.table, choice.request.num_inference_steps
    steps, delay_s, energy_j = int(choice.device_steps[at]), table.delay_s, table.energy_j
    share = f"{steps} of {total} steps on the device" + (f", {choice.orders[at]}" if 0 < steps < total else "")
    found = [f"{share}: {_rule(choice, weights, delay_limit_s)}"]
    found.append(f"it takes {delay_s[at]:.3g} s and {energy_j[at]:.3g} J (estimated)")
    if steps:
        alone = f"takes {delay_s[0]:.3g} s and {energy_j[0]:.3g} J"
        found.append(f"the edge alone {alone if np.isfinite(delay_s[0]) else 'would be overloaded'}")
    fullest = _fullest(choice)
    if choice.device_steps[fullest] > steps:
        what = f"{choice.device_steps[fullest]} steps on the device would take"
        found.append(f"{what} {delay_s[fullest]:.3g} s and {energy_j[fullest]:.3g} J")
    if table.queue_s[at] > 0:
        found.append(f"{table.queue_s[at]:.3g} s of it are for others at the edge")
    if not table.edge_sees_image[at]:
        found.append("the edge never holds the finished picture")
    return tuple(found)


def _rule(choice: Choice, weights: Weights, delay_limit_s: float | None) -> str:
    request, delay_s = choice.request, choice.table.delay_s[choice.chosen]
    if delay_limit_s is not None and delay_s > delay_limit_s:
        return f"no split keeps to {delay_limit_s:g} s, and this is the fastest"
    limits = [f"{limit:g} {unit}" for limit, unit in ((delay_limit_s, "s"), (request.energy_limit_j, "J")) if limit]
    inside = f" within {' and '.join(limits)}" if limits else ""
    if request.private_steps:
        inside += f", the last {request.private_steps} on the device"
    if weights.delay == 0 and weights.quality == 0:
        return f"the least energy{inside}"
    if weights.energy == 0 and weights.quality == 0:
        return f"the least delay{inside}"
    quality = f" - {weights.quality:g} x quality" if weights.quality else ""
    terms = f"{weights.delay:g} x delay + {weights.energy:g} x energy{quality}"
    return f"the least of {terms}, each beside the edge alone{inside}"


def _fullest(choice: Choice) -> int:
    """The fastest of the splits with most steps on the device that the limit on that share leaves."""
    most = choice.request.most_device_steps
    inside = choice.device_steps <= (choice.request.num_inference_steps if most is None else most)
    widest = np.flatnonzero(inside & (choice.device_steps == choice.device_steps[inside].max()))
    return int(widest[choice.table.delay_s[widest].argmin()])
