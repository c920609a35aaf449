"""What one picture costs in seconds and joules when a device and an edge share its steps (EUCI Eqs. 1-4)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from fedkd.planning.machines import (
    COMPONENTS,
    SD_1_5,
    SIGNAL_SPEED_M_PER_S,
    Device,
    EdgeQueue,
    Link,
    ModelCost,
    PlanningError,
    Timings,
)

__all__ = [
    "COMPONENTS",
    "ORDERS",
    "SD_1_5",
    "SIGNAL_SPEED_M_PER_S",
    "Cost",
    "CostTable",
    "Device",
    "EdgeQueue",
    "Link",
    "ModelCost",
    "PlanningError",
    "Timings",
    "cost",
    "cost_table",
]

ORDERS = ("device_first", "edge_first")


@dataclass(frozen=True)
class Cost:
    """Delay (s) and energy (J) of one picture; `delay_s = compute_s + network_s + queue_s`.

    `device_j` is the device's share of the energy, its radio's included. `edge_sees_image` says whether the
    edge holds the finished picture; `device_bytes` is what the device must load, `edge_s` the edge's own work.
    """

    delay_s: float
    energy_j: float
    compute_s: float
    network_s: float
    queue_s: float = 0.0
    device_j: float = 0.0
    edge_sees_image: bool = True
    device_bytes: float = 0.0
    edge_s: float = 0.0


@dataclass(frozen=True)
class CostTable:
    """The fields of `Cost` as arrays (M,), one entry a split."""

    delay_s: Any
    energy_j: Any
    compute_s: Any
    network_s: Any
    queue_s: Any
    device_j: Any
    edge_sees_image: Any
    device_bytes: Any
    edge_s: Any

    def row(self, index: int) -> Cost:
        """One split's cost."""
        return Cost(**{name: getattr(self, name)[index].item() for name in Cost.__dataclass_fields__})


EUCI_DEVICE = Device("device", flops_per_s=17e12, watts=4.76)
EUCI_EDGE = Device("edge", flops_per_s=1321e12, watts=450.0)
EUCI_LINK = Link(bandwidth_bps=125e6, distance_m=5e3)
EUCI_BACKHAUL = Link(bandwidth_bps=125e6, distance_m=50e3)
EUCI_STEPS = 110


def cost(
    model: ModelCost,
    device: Device,
    edge: Device,
    link: Link,
    *,
    num_inference_steps: int,
    device_steps: int,
    guidance: bool,
    order: str = "device_first",
    decode: str | None = None,
    cold_device: bool = False,
    edge_miss: bool = False,
    backhaul: Link | None = None,
    queue: EdgeQueue | None = None,
    device_unet_flop: float | None = None,
    device_unet_bytes: int | None = None,
) -> Cost:
    """Delay and energy of one picture with `device_steps` of `num_inference_steps` on the device.

    One row of `cost_table`, which says what the settings mean. Raises PlanningError when the plan cannot be.
    """
    return cost_table(
        model,
        device,
        edge,
        link,
        num_inference_steps=num_inference_steps,
        device_steps=[device_steps],
        orders=[order],
        guidance=guidance,
        decode=decode,
        cold_device=cold_device,
        edge_miss=edge_miss,
        backhaul=backhaul,
        queue=queue,
        device_unet_flop=device_unet_flop,
        device_unet_bytes=device_unet_bytes,
    ).row(0)


def cost_table(
    model: ModelCost,
    device: Device,
    edge: Device,
    link: Link,
    *,
    num_inference_steps: int,
    device_steps: Sequence[int],
    orders: Sequence[str],
    guidance: bool,
    decode: str | None = None,
    cold_device: bool = False,
    edge_miss: bool = False,
    backhaul: Link | None = None,
    queue: EdgeQueue | None = None,
    device_unet_flop: float | None = None,
    device_unet_bytes: int | None = None,
) -> CostTable:
    """Delay and energy of M splits, (device_steps[i], orders[i]) each.

    A split picture's prompt is encoded at the edge. `decode` says where it is decoded: 'edge' or 'device';
    None takes the side that runs the last steps. With 0 or all steps on the device one side does everything
    and `decode` has no effect. Guidance doubles the UNet's work and the embeddings on the link. A machine
    fetches the components that it needs and does not hold: the device over `link` (`cold_device`: the UNet),
    the edge over `backhaul` (`edge_miss`: the whole model), if it takes part. `device_unet_flop` and
    `device_unet_bytes` are those of the device's own, smaller UNet. Computing and sending never overlap.
    Raises PlanningError when a split cannot be.
    """
    t = np.asarray(device_steps, dtype=np.int64)
    _check(num_inference_steps, t, orders, decode)
    first = np.asarray([order == "device_first" for order in orders])
    edge_steps = num_inference_steps - t
    alone, none = edge_steps == 0, t == 0
    split = ~alone & ~none
    decodes = np.where(split, ~first if decode is None else np.full(t.shape, decode == "device"), alone)

    # EUCI Eqs. 1-2, with the text encoder and the VAE charged once and not at every step
    own_flop = model.unet_flop if device_unet_flop is None else device_unet_flop
    device_s = t * device.step_s(own_flop, guidance) + alone * device.encode_s(model.text_encoder_flop)
    edge_s = edge_steps * edge.step_s(model.unet_flop, guidance) + ~alone * edge.encode_s(model.text_encoder_flop)
    device_s = device_s + decodes * device.decode_s(model.vae_flop)
    edge_s = edge_s + ~decodes * edge.decode_s(model.vae_flop)

    # EUCI Eq. 3: one transfer a message, upright
    handed = model.embedding_bytes * (2 if guidance else 1) + model.latents_bytes
    up = split & (first | ~decodes)
    down = [(split, handed), (split & first & decodes, model.latents_bytes), (~decodes, model.image_bytes)]
    down += _fetches(model, device, t, alone, decodes, cold_device, device_unet_bytes)
    up_s, down_s = up * (8 * model.latents_bytes / link.bandwidth_bps), np.zeros(t.shape)
    network_s = up * (link.delay_s(model.latents_bytes) + device.message_s + edge.message_s)
    for when, size in down:
        down_s = down_s + when * (8 * size / link.bandwidth_bps)
        network_s = network_s + when * (link.delay_s(size) + device.message_s + edge.message_s)
    asked = ~alone | cold_device | ("unet" not in device.held)
    missing = [model.total_bytes] if edge_miss else [_size(model, name) for name in sorted(COMPONENTS - edge.held)]
    if missing and asked.any():
        if backhaul is None:
            raise PlanningError("backhaul=None but the edge lacks components; give the Link between edge and cloud")
        network_s = network_s + asked * sum(backhaul.delay_s(size) for size in missing)

    # EUCI Eq. 4 for the delay; energy is power times computing time, and the radio's while it is on
    queue_s = (queue or EdgeQueue()).extra_s(edge_s)
    compute_s = device_s + edge_s
    device_j = device.watts * device_s + device.send_watts * up_s + device.receive_watts * down_s
    unet = model.unet_bytes if device_unet_bytes is None else device_unet_bytes
    return CostTable(
        delay_s=compute_s + network_s + queue_s,
        energy_j=device_j + edge.watts * edge_s,
        compute_s=compute_s,
        network_s=network_s,
        queue_s=queue_s,
        device_j=device_j,
        edge_sees_image=~decodes | (split & first),
        device_bytes=(t > 0) * unet + decodes * model.vae_bytes + alone * model.text_encoder_bytes,
        edge_s=edge_s,
    )


def _fetches(
    model: ModelCost, device: Device, t: Any, alone: Any, decodes: Any, cold: bool, unet_bytes: int | None
) -> list[tuple[Any, int]]:
    """(when, bytes) of the components that the device must fetch before its first step."""
    unet = model.unet_bytes if unet_bytes is None else unet_bytes
    found: list[tuple[Any, int]] = [(t > 0, unet)] if cold or "unet" not in device.held else []
    if "vae" not in device.held and decodes.any():
        found.append((decodes, _size(model, "vae")))
    if "text_encoder" not in device.held and alone.any():
        found.append((alone, _size(model, "text_encoder")))
    return found


def _size(model: ModelCost, component: str) -> int:
    size = int(getattr(model, f"{component}_bytes"))
    if size <= 0:
        raise PlanningError(f"{component}_bytes={size} but a machine must fetch it; give its size in the model's costs")
    return size


def _check(num_inference_steps: int, t: Any, orders: Sequence[str], decode: str | None) -> None:
    if num_inference_steps < 1:
        raise PlanningError(f"num_inference_steps={num_inference_steps} is too few; give at least 1")
    for steps in t[(t < 0) | (t > num_inference_steps)]:
        raise PlanningError(f"device_steps={steps} is out of range; give 0 to {num_inference_steps}")
    for order in orders:
        if order not in ORDERS:
            raise PlanningError(f"order={order!r} is not known; give {' or '.join(ORDERS)}")
    if decode not in (None, "edge", "device"):
        raise PlanningError(f"decode={decode!r} is not known; give edge, device or None")
