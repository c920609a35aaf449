"""What a device wishes of a split picture, and what came of it."""

from __future__ import annotations

import base64
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Literal, TypedDict

import torch
from PIL import Image

from fedkd.data.condition_bytes import arrived, pack
from fedkd.data.condition_maps import EXTRACTORS
from fedkd.data.source_image import fitted
from fedkd.inference.wire import Form
from fedkd.models.control import control_conditions, control_pixels
from fedkd.planning.system import EUCI_DEVICE, EUCI_EDGE, Device

Progress = Callable[[int, int], None]
Order = Literal["device_first", "edge_first"]
Side = Literal["edge", "device"]


@dataclass(frozen=True)
class Condition:
    """What a picture shall follow: a visual condition of `kind`, extracted on this device from `source`.

    With `extracted` the source is a condition already. It travels at `resolution` of the picture's side and `level`
    of the quality (VCE's alpha and beta, 0 to 1); `scale` weighs it at the ControlNet.
    """

    kind: str
    source: Image.Image
    extracted: bool = False
    resolution: float = 1.0
    level: float = 1.0
    scale: float = 1.0

    def packed(self, size: tuple[int, int]) -> bytes:
        """What travels, for a picture of `size` (width, height)."""
        seen = fitted(self.source, size)
        return pack(seen if self.extracted else EXTRACTORS[self.kind](seen), self.resolution, self.level).data

    def body(self, data: bytes) -> dict[str, Any]:
        """What of it stands in the opening of a session."""
        return {"kind": self.kind, "image": base64.b64encode(data).decode("ascii"), "scale": self.scale}

    def told(self, data: bytes, size: tuple[int, int], rows: int, device: str) -> dict[str, torch.Tensor]:
        """A denoiser's conditions from what travelled: the same at the edge and here."""
        pixels = control_pixels(arrived(data, size), size).to(device)
        return control_conditions(pixels, rows=rows, scale=self.scale)


@dataclass(frozen=True)
class Wish:
    """One picture as its user wants it; what is None is left to the edge's defaults.

    `device_steps` counts evaluations of the denoiser; 'auto' leaves it, and `order` where that is None, to
    the planner, who keeps to `delay_limit_s` where one is given. `wire` is the form in which latents travel;
    `exact` asks the edge to batch this picture with no other, for the same bits as the unsplit pipeline. A
    `condition` steers the picture, if the edge's model has a ControlNet for its kind.
    """

    prompt: str
    num_inference_steps: int | None = None
    device_steps: int | Literal["auto"] = 0
    order: Order | None = None
    seed: int = 0
    guidance_scale: float | None = None
    scheduler: str | None = None
    scheduler_options: Mapping[str, Any] | None = None
    decode: Side = "edge"
    with_latents: bool = True
    wire: Form = "exact"
    exact: bool = True
    model: str | None = None
    deadline_s: float | None = None
    delay_limit_s: float | None = None
    condition: Condition | None = None

    def body(self, order: str, device_steps: int) -> dict[str, Any]:
        """The JSON that opens a session; fields that every edge knows, without what is left to it."""
        plan = {
            "prompt": self.prompt,
            "num_inference_steps": self.num_inference_steps,
            "device_steps": device_steps,
            "order": order,
            "seed": self.seed,
            "guidance_scale": self.guidance_scale,
            "scheduler": self.scheduler,
            "scheduler_options": self.scheduler_options,
            "model": self.model,
            "deadline_s": self.deadline_s,
        }
        return {name: value for name, value in plan.items() if value is not None}


class Plan(TypedDict, total=False):
    """The keywords of `generate`: those of a `Wish` but for its prompt."""

    num_inference_steps: int | None
    device_steps: int | Literal["auto"]
    order: Order | None
    seed: int
    guidance_scale: float | None
    scheduler: str | None
    scheduler_options: Mapping[str, Any] | None
    decode: Side
    with_latents: bool
    wire: Form
    exact: bool
    model: str | None
    deadline_s: float | None
    delay_limit_s: float | None
    condition: Condition | None


@dataclass
class SplitResult:
    """A picture that device and edge made together, with who did what and what it cost.

    `latents` are the final ones, (1, C, h, w) on the CPU, or None if they were not asked for. Steps are
    evaluations of the denoiser. Bytes are those of HTTP bodies for this picture; the model's files, fetched
    once, are in `EdgeClient.fetched_bytes`. `network_s` is what neither side spent computing. `model_digest`
    names the version that was drawn with; `edges` are the URLs that took part, in order; `notes` say what did
    not go as planned, `reasons` why 'auto' chose this split. `exact` is whether the edge kept this picture's
    forwards apart from others' (None: it did not say); equality bit for bit with the unsplit pipeline takes
    `same_build` on both sides, too, and no `device_checkpoint`, the name of the device's own smaller denoiser.
    `condition` is the kind of what steered it, which travelled in `condition_bytes`.
    """

    image: Image.Image
    latents: torch.Tensor | None
    prompt: str
    seed: int
    order: str
    device_steps: int
    edge_steps: int
    bytes_up: int
    bytes_down: int
    device_seconds: float
    edge_seconds: float
    total_seconds: float
    scheduler: str
    num_inference_steps: int
    guidance_scale: float
    decoded_by: str
    model_digest: str = ""
    edges: tuple[str, ...] = ()
    notes: tuple[str, ...] = ()
    reasons: tuple[str, ...] = ()
    wire: Form = "exact"
    exact: bool | None = None
    same_build: bool = True
    device_checkpoint: str = ""
    condition: str = ""
    condition_bytes: int = 0
    device_profile: Device = EUCI_DEVICE
    edge_profile: Device = EUCI_EDGE

    @property
    def network_s(self) -> float:
        """Seconds of the whole that were spent between the two."""
        return max(0.0, self.total_seconds - self.device_seconds - self.edge_seconds)

    @property
    def device_energy_j(self) -> float:
        """Joules of the device, estimated: the watts of its profile times its seconds."""
        return self.device_profile.watts * self.device_seconds

    @property
    def edge_energy_j(self) -> float:
        """Joules of the edge, estimated: the watts of its profile times its seconds."""
        return self.edge_profile.watts * self.edge_seconds
