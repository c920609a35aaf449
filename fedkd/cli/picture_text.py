"""What `fedkd generate` prints of a picture: who did what, what it cost, and whether it is the very picture."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

from fedkd.planning.system import Device

if TYPE_CHECKING:
    from fedkd.serving.split_request import SplitResult


def profile(name: str, known: Device, watts: float) -> Device:
    """The `known` profile under a name that says where its watts are from: `watts`, unless 0, are the user's."""
    return replace(known, name="as given", watts=watts) if watts else replace(known, name=name)


def how_equal(result: SplitResult) -> str:
    """Why the picture may not be the unsplit pipeline's, in brackets; nothing where it is, bit for bit."""
    if result.device_checkpoint:
        return f" (the device used its own denoiser, {result.device_checkpoint})"
    if result.wire != "exact":
        return f" (latents travelled as {result.wire}: near the unsplit picture, not equal)"
    if result.exact is False:
        return " (batched with other pictures: equal to about 1e-6, not bit for bit)"
    return "" if result.same_build else " (builds or threads differ: equal to about 1e-6, not bit for bit)"


def account(result: SplitResult, fetched_bytes: int) -> list[str]:
    """Who did what, and what it cost."""
    first, last = ("device", "edge") if result.order == "device_first" else ("edge", "device")
    counts = {"device": result.device_steps, "edge": result.edge_steps}
    lines = [f"why      {reason}" for reason in result.reasons]
    lines.append(
        f"steps    {first} {counts[first]}, then {last} {counts[last]}; decoded by the {result.decoded_by} "
        f"({result.scheduler}, guidance {result.guidance_scale:g})"
    )
    if len(result.edges) > 1:
        lines.append(f"edges    {', then '.join(result.edges)}")
    fetched = f"{fetched_bytes:,} of model fetched" if fetched_bytes else "no model fetched"
    lines.append(f"bytes    {result.bytes_up:,} up, {result.bytes_down:,} down; {fetched}")
    lines.append(
        f"seconds  {result.total_seconds:.2f}: device {result.device_seconds:.2f}, "
        f"edge {result.edge_seconds:.2f}, network {result.network_s:.2f}"
    )
    shares = [
        f"{who} {joules:.3g} = {profile.watts:g} W ({profile.name}) x {seconds:.2f} s"
        for who, joules, profile, seconds in (
            ("device", result.device_energy_j, result.device_profile, result.device_seconds),
            ("edge", result.edge_energy_j, result.edge_profile, result.edge_seconds),
        )
    ]
    lines.append(f"joules   {result.device_energy_j + result.edge_energy_j:.3g} estimated: {', '.join(shares)}")
    return lines
