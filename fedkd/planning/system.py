"""What one picture costs in seconds and joules when a device and an edge share its steps (EUCI Eqs. 1-4)."""

from __future__ import annotations

from dataclasses import dataclass

SIGNAL_SPEED_M_PER_S = 2e8  # in fibre; the paper leaves it open
ORDERS = ("device_first", "edge_first")


class PlanningError(ValueError):
    """A plan or a system that cannot be; the message names the field, the value and the fix."""


@dataclass(frozen=True)
class ModelCost:
    """Work and sizes of one Stable Diffusion model; FLOPs of one forward pass for one picture.

    `unet_flop` is one step without guidance; `embedding_bytes` is one prompt's embedding.
    """

    unet_flop: float
    text_encoder_flop: float
    vae_flop: float
    unet_bytes: int
    latents_bytes: int
    embedding_bytes: int
    image_bytes: int
    total_bytes: int


@dataclass(frozen=True)
class Device:
    """A machine that runs steps: its speed (FLOP/s) and what it draws while it computes (W)."""

    name: str
    flops_per_s: float
    watts: float


@dataclass(frozen=True)
class Link:
    """A connection between two machines: bandwidth (bit/s) and length (m)."""

    bandwidth_bps: float
    distance_m: float

    def delay_s(self, size_bytes: float) -> float:
        """Seconds for one message of `size_bytes`: 8·bytes/W + L/c (EUCI Eq. 3, upright)."""
        return 8 * size_bytes / self.bandwidth_bps + self.distance_m / SIGNAL_SPEED_M_PER_S


@dataclass(frozen=True)
class Cost:
    """Delay (s) and energy (J) of one picture; `delay_s = compute_s + network_s`."""

    delay_s: float
    energy_j: float
    compute_s: float
    network_s: float


SD_1_5 = ModelCost(
    unet_flop=0.80327e12,
    text_encoder_flop=0.01330e12,
    vae_flop=2.51452e12,
    unet_bytes=1_719_041_928,
    latents_bytes=32_768,
    embedding_bytes=118_272,
    image_bytes=786_432,
    total_bytes=2_132_470_614,
)
"""Stable Diffusion 1.5 at 512 x 512 in fp16."""

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
) -> Cost:
    """Delay and energy of one picture with `device_steps` of `num_inference_steps` on the device.

    A split picture's prompt is encoded at the edge. `decode` says where it is decoded: 'edge' or 'device';
    None takes the side that runs the last steps. With 0 or all steps on the device one side does everything
    and `decode` has no effect. Guidance doubles the UNet's work and the embeddings on the link. A cold
    device first fetches the UNet over `link`; `edge_miss` fetches the whole model over `backhaul`, if the
    edge takes part. Computing and sending never overlap. Raises PlanningError when the plan cannot be.
    """
    _check(num_inference_steps, device_steps, order, decode)
    edge_steps = num_inference_steps - device_steps
    split = device_steps > 0 and edge_steps > 0
    if not split:
        decode = "device" if edge_steps == 0 else "edge"
    elif decode is None:
        decode = "edge" if order == "device_first" else "device"

    # EUCI Eqs. 1-2, with the text encoder and the VAE charged once and not at every step
    step_flop = model.unet_flop * (2 if guidance else 1)
    device_flop = device_steps * step_flop + (model.text_encoder_flop if edge_steps == 0 else 0.0)
    edge_flop = edge_steps * step_flop + (model.text_encoder_flop if edge_steps > 0 else 0.0)
    if decode == "device":
        device_flop += model.vae_flop
    else:
        edge_flop += model.vae_flop
    device_s, edge_s = device_flop / device.flops_per_s, edge_flop / edge.flops_per_s

    # EUCI Eq. 3: one transfer a message
    messages_bytes: list[float] = []
    if split:
        embeddings = model.embedding_bytes * (2 if guidance else 1)
        messages_bytes.append(embeddings + model.latents_bytes)
        if order == "device_first" or decode == "edge":
            messages_bytes.append(model.latents_bytes)
        if order == "device_first" and decode == "device":
            messages_bytes.append(model.latents_bytes)
    if decode == "edge":
        messages_bytes.append(model.image_bytes)
    if cold_device and device_steps > 0:
        messages_bytes.append(model.unet_bytes)
    network_s = sum(link.delay_s(size) for size in messages_bytes)
    if edge_miss and (edge_steps > 0 or cold_device):
        if backhaul is None:
            raise PlanningError("backhaul=None with edge_miss=True; give the Link between edge and cloud")
        network_s += backhaul.delay_s(model.total_bytes)

    # EUCI Eq. 4 for the delay; energy is power times computing time
    return Cost(
        delay_s=device_s + edge_s + network_s,
        energy_j=device.watts * device_s + edge.watts * edge_s,
        compute_s=device_s + edge_s,
        network_s=network_s,
    )


def _check(num_inference_steps: int, device_steps: int, order: str, decode: str | None) -> None:
    if num_inference_steps < 1:
        raise PlanningError(f"num_inference_steps={num_inference_steps} is too few; give at least 1")
    if not 0 <= device_steps <= num_inference_steps:
        raise PlanningError(f"device_steps={device_steps} is out of range; give 0 to {num_inference_steps}")
    if order not in ORDERS:
        raise PlanningError(f"order={order!r} is not known; give {' or '.join(ORDERS)}")
    if decode not in (None, "edge", "device"):
        raise PlanningError(f"decode={decode!r} is not known; give edge, device or None")
