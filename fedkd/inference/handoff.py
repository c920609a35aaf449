"""The hand-off: everything that lets another machine go on denoising bit for bit, as safetensors bytes."""

from __future__ import annotations

import json
import math
from dataclasses import dataclass, field
from typing import Any

import torch
from safetensors.torch import load, save

from fedkd.inference.state_codec import CodecError, decode, encode

FORMAT = "fedkd-handoff"
VERSION = 1
MAX_HEADER_BYTES = 1 << 20
GENERATOR_BYTES = 5056
CONDITION_NAMES = ("encoder_hidden_states", "text_embeds", "time_ids", "pooled_projections")
FIELDS = (
    "scheduler", "scheduler_config", "arguments", "state", "step", "guidance_scale", "seed", "dtype", "model"
)  # fmt: skip


class HandOffError(ValueError):
    """Bytes that are no hand-off, or a hand-off that does not belong here."""


@dataclass
class HandOff:
    """A picture in the making, after `step` evaluations of the denoiser.

    `latents` is (1, C, h, w); `state` holds the scheduler's attributes that differ from a fresh twin's;
    `generator` is the state of a CPU generator, (5056,) uint8, or None where nothing has been drawn since
    the first latents were drawn from `seed`; `arguments` went into `set_timesteps`.
    `conditions` is None where the receiver keeps the embeddings by session.
    """

    latents: torch.Tensor
    scheduler: str
    scheduler_config: dict[str, Any]
    arguments: dict[str, Any]
    step: int
    guidance_scale: float
    seed: int
    generator: torch.Tensor | None
    model: str
    dtype: str = "float32"
    state: dict[str, Any] = field(default_factory=dict)
    conditions: dict[str, torch.Tensor] | None = None

    def to_bytes(self) -> bytes:
        """The wire form: safetensors, whose metadata carries a JSON header. No pickle."""
        tensors = {"latents": _still(self.latents)}
        if self.generator is not None:
            tensors["generator"] = _still(self.generator)
        for name, tensor in (self.conditions or {}).items():
            tensors[f"conditions.{name}"] = _still(tensor)
        header = {"format": FORMAT, "version": VERSION, "conditions": self.conditions is not None}
        for name in FIELDS:
            header[name] = encode(getattr(self, name), tensors, name)
        return save(tensors, metadata={FORMAT: json.dumps(header, allow_nan=False)})

    @classmethod
    def from_bytes(cls, data: bytes, *, model: str | None = None) -> HandOff:
        """Read the wire form.

        HandOffError when it is malformed, has numbers that are not finite, or belongs to a model other
        than the digest `model`.
        """
        header, tensors = _read(data)
        try:
            values = {name: decode(header[name], tensors) for name in FIELDS}
        except KeyError as error:
            raise HandOffError(f"malformed hand-off: the header lacks {error}") from error
        except CodecError as error:
            raise HandOffError(f"malformed hand-off: {error}") from error
        if model is not None and values["model"] != model:
            raise HandOffError(
                f"the hand-off is for another model ({str(values['model'])[:12]}, here {model[:12]}); "
                "open a new session"
            )
        conditions = None
        if header.get("conditions"):
            sent = {name: tensors.get(f"conditions.{name}") for name in CONDITION_NAMES}
            conditions = {name: tensor for name, tensor in sent.items() if tensor is not None}
        try:
            latents = tensors["latents"]
        except KeyError as error:
            raise HandOffError(f"malformed hand-off: no tensor called {error}") from error
        found = cls(latents=latents, generator=tensors.get("generator"), conditions=conditions, **values)
        _check(found)
        return found


def _still(tensor: torch.Tensor) -> torch.Tensor:
    return tensor.detach().cpu().clone().contiguous()


def _read(data: bytes) -> tuple[dict[str, Any], dict[str, torch.Tensor]]:
    size = int.from_bytes(data[:8], "little")
    if len(data) < 8 or size > min(MAX_HEADER_BYTES, len(data) - 8):
        raise HandOffError("malformed hand-off: not safetensors bytes")
    try:
        metadata = json.loads(data[8 : 8 + size]).get("__metadata__") or {}
        header = json.loads(metadata[FORMAT])
        tensors = load(data)
    except Exception as error:
        raise HandOffError(f"malformed hand-off: {type(error).__name__} while reading it") from error
    if not isinstance(header, dict) or header.get("format") != FORMAT:
        raise HandOffError("malformed hand-off: no hand-off header")
    if header.get("version") != VERSION:
        raise HandOffError(
            f"hand-off version {header.get('version')!r} is not {VERSION}; use the same fedkd on both sides"
        )
    return header, tensors


def _check(found: HandOff) -> None:
    kinds: dict[str, tuple[type, ...]] = {
        "scheduler": (str,),
        "scheduler_config": (dict,),
        "arguments": (dict,),
        "state": (dict,),
        "step": (int,),
        "guidance_scale": (int, float),
        "seed": (int,),
        "dtype": (str,),
        "model": (str,),
    }
    for name, kind in kinds.items():
        value = getattr(found, name)
        if not isinstance(value, kind) or isinstance(value, bool):
            raise HandOffError(f"malformed hand-off: {name} is a {type(value).__name__}")
    if not math.isfinite(found.guidance_scale) or found.step < 0:
        raise HandOffError("malformed hand-off: guidance_scale must be finite and step not negative")
    if found.latents.ndim != 4 or found.latents.shape[0] != 1 or not found.latents.is_floating_point():
        raise HandOffError(f"malformed hand-off: latents have shape {tuple(found.latents.shape)}")
    if not 0 <= found.seed < 1 << 63:
        raise HandOffError("malformed hand-off: seed must be from 0 to 2^63 - 1")
    state = found.generator
    if state is not None and (state.dtype != torch.uint8 or state.shape != (GENERATOR_BYTES,)):
        raise HandOffError("malformed hand-off: no CPU generator state of 5056 bytes")
    for name, tensor in {"latents": found.latents, **(found.conditions or {})}.items():
        if not torch.isfinite(tensor).all():
            raise HandOffError(f"malformed hand-off: {name} is not finite")
    if found.conditions is not None and "encoder_hidden_states" not in found.conditions:
        raise HandOffError("malformed hand-off: conditions without encoder_hidden_states")
