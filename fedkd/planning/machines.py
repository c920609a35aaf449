"""What plans are made for: machines, links, the edge's queue, and what a model asks of them."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import numpy as np

SIGNAL_SPEED_M_PER_S = 2e8  # in fibre; the paper leaves it open
COMPONENTS = frozenset({"unet", "text_encoder", "vae"})


class PlanningError(ValueError):
    """A plan or a system that cannot be; the message names the field, the value and the fix."""


def require(field: str, value: float, *, zero: bool = False, infinite: bool = False) -> None:
    """PlanningError unless `value` is a number above 0 (or 0, with `zero`) that is finite (unless `infinite`)."""
    low_enough = value > 0 or (zero and value == 0)
    if not low_enough or (math.isinf(value) and not infinite):
        raise PlanningError(
            f"{field}={value:g} cannot be; give a finite number {'of at least 0' if zero else 'above 0'}"
        )


@dataclass(frozen=True)
class Timings:
    """Measured seconds of one machine on one `model`: they replace work divided by speed.

    One denoising step without and with guidance, encoding one prompt, decoding one picture, and packing
    or unpacking one message. Raises PlanningError for what is negative, zero or not finite.
    """

    model: str
    step_s: float
    guided_step_s: float
    encode_s: float
    decode_s: float
    message_s: float = 0.0

    def __post_init__(self) -> None:
        for field in ("step_s", "guided_step_s", "encode_s", "decode_s"):
            require(f"timings.{field}", getattr(self, field))
        require("timings.message_s", self.message_s, zero=True)


@dataclass(frozen=True)
class Device:
    """A machine that runs steps: its speed (FLOP/s) and what it draws while it computes (W).

    `memory_bytes` bounds what it can load; `held` names the components it has ("unet", "text_encoder",
    "vae"), others are fetched first. `send_watts` and `receive_watts` are its radio's. `timings` are
    measured times, if there are any. Raises PlanningError for numbers that no machine has.
    """

    name: str
    flops_per_s: float
    watts: float
    memory_bytes: float = math.inf
    held: frozenset[str] = COMPONENTS
    send_watts: float = 0.0
    receive_watts: float = 0.0
    timings: Timings | None = None

    def __post_init__(self) -> None:
        require(f"{self.name}: flops_per_s", self.flops_per_s)
        require(f"{self.name}: memory_bytes", self.memory_bytes, infinite=True)
        for field in ("watts", "send_watts", "receive_watts"):
            require(f"{self.name}: {field}", getattr(self, field), zero=True)
        if unknown := set(self.held) - COMPONENTS:
            raise PlanningError(
                f"{self.name}: held={sorted(unknown)} is not known; give {', '.join(sorted(COMPONENTS))}"
            )

    def step_s(self, flop: float, guidance: bool) -> float:
        """Seconds of one step of `flop` FLOPs without guidance, which doubles them."""
        if self.timings is not None:
            return self.timings.guided_step_s if guidance else self.timings.step_s
        return flop * (2 if guidance else 1) / self.flops_per_s

    def encode_s(self, flop: float) -> float:
        """Seconds of encoding one prompt."""
        return flop / self.flops_per_s if self.timings is None else self.timings.encode_s

    def decode_s(self, flop: float) -> float:
        """Seconds of decoding one picture."""
        return flop / self.flops_per_s if self.timings is None else self.timings.decode_s

    @property
    def message_s(self) -> float:
        """Seconds of packing or unpacking one message."""
        return 0.0 if self.timings is None else self.timings.message_s


@dataclass(frozen=True)
class Link:
    """A connection between two machines: bandwidth (bit/s) and length (m); PlanningError for none at all."""

    bandwidth_bps: float
    distance_m: float

    def __post_init__(self) -> None:
        require("bandwidth_bps", self.bandwidth_bps)
        require("distance_m", self.distance_m, zero=True)

    def delay_s(self, size_bytes: float) -> float:
        """Seconds for one message of `size_bytes`: 8·bytes/W + L/c (EUCI Eq. 3, upright)."""
        return 8 * size_bytes / self.bandwidth_bps + self.distance_m / SIGNAL_SPEED_M_PER_S


@dataclass(frozen=True)
class EdgeQueue:
    """Who else wants the edge.

    `waiting_s`: work that stands before this request now. `arrivals_per_s`: later requests that are planned
    as this one is, served one by one in order: M/D/1, mean wait λS²/(2(1-λS)) with S the edge's own work.
    `slowdown`: how much longer a step takes because others share its batch.
    """

    waiting_s: float = 0.0
    arrivals_per_s: float = 0.0
    slowdown: float = 1.0

    def __post_init__(self) -> None:
        require("queue: waiting_s", self.waiting_s, zero=True)
        require("queue: arrivals_per_s", self.arrivals_per_s, zero=True)
        if not 1 <= self.slowdown < math.inf:
            raise PlanningError(f"queue: slowdown={self.slowdown:g} cannot be; give 1 or more")

    def extra_s(self, edge_s: Any) -> Any:
        """Seconds (M,) that work of `edge_s` (M,) takes longer than alone; infinite where the edge is overloaded."""
        served_s = edge_s * self.slowdown
        load = self.arrivals_per_s * served_s
        with np.errstate(divide="ignore", invalid="ignore"):
            wait_s = np.where(load < 1, load * served_s / (2 * (1 - load)), math.inf)
        return np.where(edge_s > 0, self.waiting_s + wait_s + served_s - edge_s, 0.0)


@dataclass(frozen=True)
class ModelCost:
    """Work and sizes of one Stable Diffusion model; FLOPs of one forward pass for one picture.

    `unet_flop` is one step without guidance; `embedding_bytes` is one prompt's embedding. 0 for the text
    encoder's or the VAE's bytes says that they are not known.
    """

    unet_flop: float
    text_encoder_flop: float
    vae_flop: float
    unet_bytes: int
    latents_bytes: int
    embedding_bytes: int
    image_bytes: int
    total_bytes: int
    text_encoder_bytes: int = 0
    vae_bytes: int = 0


SD_1_5 = ModelCost(
    unet_flop=0.80327e12,
    text_encoder_flop=0.01330e12,
    vae_flop=2.51452e12,
    unet_bytes=1_719_041_928,
    latents_bytes=32_768,
    embedding_bytes=118_272,
    image_bytes=786_432,
    total_bytes=2_132_470_614,
    text_encoder_bytes=246_120_960,
    vae_bytes=167_307_726,
)
"""Stable Diffusion 1.5 at 512 x 512 in fp16."""
