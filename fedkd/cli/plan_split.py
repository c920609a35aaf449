"""`fedkd plan split`: how many steps the device does, and who goes first."""

from __future__ import annotations

from dataclasses import asdict, replace
from enum import Enum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

if TYPE_CHECKING:
    from fedkd.planning.machines import Device, Link
    from fedkd.planning.profiles import Profile
    from fedkd.planning.split import Choice, SplitSystem
    from fedkd.planning.system import ModelCost

SHOWN = 12


class Orders(str, Enum):  # noqa: UP042  (typer shows the values)
    """Who may denoise first."""

    both = "both"
    device_first = "device_first"
    edge_first = "edge_first"


class Decode(str, Enum):  # noqa: UP042
    """Who decodes a split picture."""

    last = "last"
    edge = "edge"
    device = "device"


def split(
    model: Annotated[
        str, typer.Option(help="sd-1.5, sd-2.1, sd-2.1-768, sdxl, a shipped name, a diffusers folder or a hub id.")
    ] = "sd-1.5",
    steps: Annotated[int, typer.Option(help="Denoising steps in all.")] = 50,
    device: Annotated[str, typer.Option(help="Profile of the device: shipped, or a JSON file.")] = "iphone-14-pro-max",
    edge: Annotated[str, typer.Option(help="Profile of the edge.")] = "rtx-4090",
    guidance: Annotated[bool, typer.Option(help="Classifier-free guidance: doubles the UNet's work.")] = True,
    order: Annotated[Orders, typer.Option(help="Who may go first.")] = Orders.both,
    decode: Annotated[Decode, typer.Option(help="Who decodes a split picture; last: who did the last steps.")] = (
        Decode.last
    ),
    delay_limit: Annotated[float | None, typer.Option(help="TL_max: seconds, at most.")] = None,
    energy_limit: Annotated[float | None, typer.Option(help="TC_max: joules of both sides, at most.")] = None,
    private: Annotated[
        int, typer.Option(help="Last steps that the device must do, so that the edge never holds the picture.")
    ] = 0,
    weight_delay: Annotated[float, typer.Option(help="What the edge's delay alone counts for.")] = 0.5,
    weight_energy: Annotated[float, typer.Option(help="What the edge's energy alone counts for.")] = 0.5,
    weight_quality: Annotated[float, typer.Option(help="What the edge's quality alone counts for.")] = 0.0,
    bandwidth: Annotated[float | None, typer.Option(help="Bit/s between device and edge [default: profile's].")] = None,
    distance: Annotated[float | None, typer.Option(help="Metres between them [default: profile's].")] = None,
    device_model: Annotated[str, typer.Option(help="The device's own, smaller model, named as --model is.")] = "",
    device_quality: Annotated[float, typer.Option(help="Quality of what that model draws alone; the edge's is 1.")] = (
        1.0
    ),
    cold: Annotated[bool, typer.Option(help="The device must first fetch the UNet.")] = False,
    edge_miss: Annotated[bool, typer.Option(help="The edge must first fetch the model over its own link.")] = False,
    waiting: Annotated[float, typer.Option(help="Seconds of work that wait at the edge already.")] = 0.0,
    arrivals: Annotated[float, typer.Option(help="Requests a second that come to the edge and are split alike.")] = 0.0,
    slowdown: Annotated[float, typer.Option(help="How much longer a step at the edge takes as it shares a batch.")] = (
        1.0
    ),
    every: Annotated[bool, typer.Option("--all", help="Show all of the front, not a dozen points.")] = False,
    plot: Annotated[Path | None, typer.Option(help="PNG or SVG of the front, with the chosen split.")] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print the plan and the whole front as JSON.")] = False,
) -> None:
    """Split one picture's steps between device and edge: the best of all splits, and the Pareto front.

    Delay and energy are weighed as shares of what the edge alone takes; limits are kept, or the least that
    would do is named. QoE is w1 quality - w2 delay - w3 energy in these shares (EUCI Eq. 8). Nothing is
    drawn, and no model is loaded.

    Example: fedkd plan split --steps 110 --no-guidance --delay-limit 1

    Example: fedkd plan split --model sdxl --edge rtx-4090-fp16 --private 5 --plot front.png

    Example: fedkd plan split --device jetson-agx-orin --bandwidth 50e6 --distance 1e3 --weight-delay 0
    """
    from fedkd.cli.console import guard

    with guard():
        from fedkd.planning.machines import EdgeQueue
        from fedkd.planning.profiles import load_profile
        from fedkd.planning.split import SplitRequest, SplitSystem, Weights, choose
        from fedkd.planning.system import ORDERS, PlanningError

        near, far = load_profile(device), load_profile(edge)
        if near.link is None and (bandwidth is None or distance is None):
            raise PlanningError(f"profile {device} has no link; give --bandwidth (bit/s) and --distance (m)")
        own = cost_of(device_model) if device_model else None
        devices, notes = _machines(near, far, model, device_model or model)
        system = SplitSystem(
            cost_of(model),
            *devices,
            _link(near.link, bandwidth, distance),
            backhaul=far.link,
            queue=EdgeQueue(waiting, arrivals, slowdown),
            cold_device=cold,
            edge_miss=edge_miss,
            device_unet_flop=own.unet_flop if own else None,
            device_unet_bytes=own.unet_bytes if own else None,
            device_quality=device_quality,
        )
        request = SplitRequest(
            num_inference_steps=steps,
            guidance=guidance,
            orders=ORDERS if order is Orders.both else (order.value,),
            decode=None if decode is Decode.last else decode.value,
            delay_limit_s=delay_limit,
            energy_limit_j=energy_limit,
            private_steps=private,
            weights=Weights(weight_delay, weight_energy, weight_quality),
        )
        show(choose(request, system), system, notes, every=every, plot=plot, as_json=as_json)


def show(
    choice: Choice, system: SplitSystem, notes: list[str], *, every: bool, plot: Path | None, as_json: bool
) -> None:
    """Print the plan with its front, and draw it."""
    import numpy as np

    from fedkd.cli import plan_figures

    front = [int(i) for i in np.flatnonzero(choice.front)[np.argsort(choice.table.delay_s[choice.front])]]
    plan, table = choice.plan(system.edge.name), choice.table
    if plot is not None:
        _draw(choice, plot)
    if as_json:
        facts = {"plan": plan.facts(), "front": [_facts(choice, i) for i in front], "notes": notes}
        print(plan_figures.as_json(facts | {"request": asdict(choice.request)}))
        return
    rows = []
    for i in front if every else plan_figures.thinned(front, SHOWN, choice.chosen):
        mark = "*" if i == choice.chosen else ""
        row = [f"{choice.device_steps[i]}{mark}", choice.orders[i] if _split(choice, i) else "-"]
        row += [f"{table.delay_s[i]:.4g}", f"{table.energy_j[i]:.4g}", f"{table.device_j[i]:.4g}"]
        row += [f"{choice.quality[i]:.3f}", f"{-choice.loss[i]:.4g}"]
        rows.append([*row, "yes" if table.edge_sees_image[i] else "no"])
    for line in plan_figures.aligned(
        ["device steps", "order", "delay s", "energy J", "device J", "quality", "QoE", "edge sees picture"], rows
    ):
        print(line)
    hidden = len(front) - len(rows)
    print(f"* chosen; the Pareto front has {len(front)} splits{f', --all shows {hidden} more' if hidden else ''}")
    for line in [*plan.reasons, *notes]:
        print(line)
    if plot is not None:
        print(f"wrote {plot}")


def cost_of(name: str) -> ModelCost:
    """Work and sizes of a model: known ones without loading anything, others counted from their configurations."""
    from fedkd.planning.known_models import KNOWN
    from fedkd.planning.system import ModelCost

    if name in KNOWN:
        return KNOWN[name]
    from fedkd.models.architecture import counted_cost
    from fedkd.models.source import ModelError

    try:
        return ModelCost(**counted_cost(name))
    except ModelError as error:
        raise ModelError(f"{error}, or one of {', '.join(KNOWN)}") from error


def _machines(near: Profile, far: Profile, model: str, own: str) -> tuple[tuple[Device, Device], list[str]]:
    """Device and edge; times that were measured on another model give way to work divided by speed."""
    found, notes = [], []
    for profile, drawn in ((near, own), (far, model)):
        device = profile.device
        if device.timings is not None and device.timings.model != drawn:
            notes.append(
                f"{device.name}: measured on {device.timings.model}, so its speed in FLOP/s is taken for {drawn}"
            )
            device = replace(device, timings=None)
        if profile.peak:
            notes.append(f"{device.name}: the speed is a data sheet's peak, so real delays are longer")
        found.append(device)
    return (found[0], found[1]), notes


def _link(link: Link | None, bandwidth: float | None, distance: float | None) -> Link:
    from fedkd.planning.machines import Link

    taken = link or Link(1.0, 0.0)  # both of its figures are replaced
    return Link(
        taken.bandwidth_bps if bandwidth is None else bandwidth, taken.distance_m if distance is None else distance
    )


def _split(choice: Choice, index: int) -> bool:
    return 0 < choice.device_steps[index] < choice.request.num_inference_steps


def _facts(choice: Choice, index: int) -> dict[str, Any]:
    return asdict(choice.table.row(index)) | {
        "device_steps": int(choice.device_steps[index]),
        "order": choice.orders[index],
        "quality": float(choice.quality[index]),
        "qoe": -float(choice.loss[index]),
        "chosen": index == choice.chosen,
    }


def _draw(choice: Choice, path: Path) -> None:
    import numpy as np

    from fedkd.cli.plan_figures import front_figure

    request, table = choice.request, choice.table
    series = {}
    for order in request.orders:
        same = np.flatnonzero([each == order or not _split(choice, i) for i, each in enumerate(choice.orders)])
        series[order.replace("_", " ")] = (table.delay_s[same], table.energy_j[same])
    front, at = np.flatnonzero(choice.front), choice.chosen
    series["Pareto front"] = (table.delay_s[front], table.energy_j[front])
    front_figure(
        path,
        series,
        (float(table.delay_s[at]), float(table.energy_j[at])),
        axes=("delay (s)", "energy of both sides (J)"),
        title=f"{request.num_inference_steps} steps between device and edge",
        label=f"chosen: {choice.device_steps[at]} on the device",
        limits=(request.delay_limit_s, request.energy_limit_j),
    )
