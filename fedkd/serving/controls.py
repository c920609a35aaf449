"""The ControlNets that an edge holds beside a model, and a request's condition made ready for one of them."""

from __future__ import annotations

import asyncio
import base64
import binascii
import logging
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from PIL import Image

from fedkd.data.condition_bytes import MAX_BYTES, arrived
from fedkd.data.condition_maps import EXTRACTORS, KINDS
from fedkd.data.source_image import SourceError, fitted, read_source
from fedkd.models.control import ControlledUNet, control_pixels
from fedkd.models.controlnet_folder import FACTS, ControlNetFolder, Unfit, find_controlnet, load_controlnet
from fedkd.models.source import ModelError
from fedkd.serving.components import ComponentFile, file_digest, model_digest
from fedkd.serving.errors import EdgeFault

log = logging.getLogger("fedkd.serving")
EDGE_PIXELS = 16_000_000  # of a source that the edge itself decodes, for somebody else: 48 MB
DECODED_AT_ONCE = 2


@dataclass(frozen=True, eq=False)
class Control:
    """A ControlNet for one served model: `kind` of its condition, its `denoiser`, and its `key` in the step engine."""

    kind: str
    folder: Path
    digest: str
    files: list[ComponentFile]
    denoiser: ControlledUNet
    key: str

    def describe(self) -> dict[str, Any]:
        """What a device needs to hold it too."""
        return {"digest": self.digest, "files": [asdict(file) for file in self.files]}


@dataclass(frozen=True, eq=False)
class Steering:
    """One request's condition: `pixels` (1, 3, H, W) in [0, 1] at the size of the model's pictures, and its weight."""

    kind: str
    pixels: torch.Tensor
    scale: float = 1.0


def controls_for(unet: Any, given: Sequence[str], key: str, *, device: str, dtype: str) -> dict[str, Control]:
    """By kind, those of `given` ([KIND=]PLACE) that fit `unet`; ModelError for one that is none."""
    found: dict[str, Control] = {}
    for each in given:
        place = find_controlnet(each, KINDS)
        try:
            net = load_controlnet(place, unet, device=device, dtype=dtype)
        except Unfit as error:
            log.info("%s", error)
            continue
        if place.kind in found:
            raise ModelError(f"controlnet={each}: another is steered by {place.kind} already; give one of each kind")
        files = _files(place)
        found[place.kind] = Control(
            kind=place.kind,
            folder=Path(place.folder),
            digest=model_digest(files),
            files=files,
            denoiser=ControlledUNet(unet, net).eval(),
            key=f"{key}/{place.kind}",
        )
    return found


def _files(place: ControlNetFolder) -> list[ComponentFile]:
    """What a device fetches; nothing of one that came from a hub's cache under other names."""
    folder = Path(place.folder)
    if not folder.is_dir():
        return []
    paths = [p for p in sorted(folder.iterdir()) if p.suffix in (".json", ".safetensors") and p.name != FACTS]
    return [ComponentFile("controlnet", path.name, file_digest(path), path.stat().st_size) for path in paths]


class Conditions:
    """Makes requests' conditions ready, off the event loop and few at a time: a source takes memory to decode."""

    def __init__(self) -> None:
        self._room = asyncio.Semaphore(DECODED_AT_ONCE)

    async def extracted(
        self, controls: Mapping[str, Control], kind: str, image: str, scale: float, size: tuple[int, int]
    ) -> Steering:
        """A condition that the device extracted, `image` in base64, for pictures of `size` (width, height)."""
        _check_kind(controls, kind, "condition.kind")
        field = "condition.image"
        if len(image) > MAX_BYTES * 4 // 3 + 4:
            raise EdgeFault(413, f"{field} has more than {MAX_BYTES:,} bytes; compress it more", param=field,
                            code="image_too_large")  # fmt: skip
        try:
            data = base64.b64decode(image, validate=True)
        except (binascii.Error, ValueError) as error:
            raise EdgeFault(400, f"{field} is no base64", param=field, code="invalid_image") from error
        return await self._ready(kind, lambda: arrived(data, size, field), scale, size, field)

    async def of_source(
        self,
        controls: Mapping[str, Control],
        kind: str | None,
        data: bytes,
        scale: float,
        size: tuple[int, int],
        *,
        is_condition: bool,
    ) -> Steering:
        """The condition of a whole source picture, extracted here; or `data` is one already (`is_condition`).

        `kind` None takes the model's first. EdgeFault 400 or 413 for what cannot be.
        """
        kind = kind or next(iter(controls), "")
        _check_kind(controls, kind, "condition")

        def work() -> Image.Image:
            if is_condition:
                return arrived(data, size, "image")
            return EXTRACTORS[kind](fitted(read_source(data, "image", max_pixels=EDGE_PIXELS), size))

        return await self._ready(kind, work, scale, size, "image")

    async def _ready(
        self, kind: str, work: Callable[[], Image.Image], scale: float, size: tuple[int, int], field: str
    ) -> Steering:
        try:
            async with self._room:
                pixels = await asyncio.to_thread(lambda: control_pixels(work(), size))
        except SourceError as error:
            status = 413 if error.code in ("too_many_pixels", "image_too_large") else 400
            raise EdgeFault(status, str(error), param=field, code=error.code) from error
        return Steering(kind, pixels, scale)


def _check_kind(controls: Mapping[str, Control], kind: str, field: str) -> None:
    """EdgeFault 400 when no ControlNet of the model is steered by this kind of condition."""
    if not controls:
        raise EdgeFault(
            400,
            "this model has no ControlNet, so no picture steers it; ask for another model, or leave the condition out",
            param=field.partition(".")[0] if field != "condition" else "image",
            code="no_controlnet",
        )
    if kind not in controls:
        known = ", ".join(controls)
        raise EdgeFault(
            400,
            f"{field}={kind!r} does not steer this model; it takes {known}",
            param=field,
            code="condition_not_supported",
        )
