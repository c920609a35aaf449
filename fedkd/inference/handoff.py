"""The hand-off: everything that lets another machine go on denoising bit for bit, as safetensors bytes."""

from __future__ import annotations

import json
import math
from dataclasses import dataclass, field
from typing import Any

import torch
from safetensors.torch import load, save

from fedkd.inference.condition_codec import restore, strip
from fedkd.inference.state_codec import CodecError, decode, encode
from fedkd.inference.wire import MAX_VALUES, Form, Packed, WireError, check_form, pack_latents, unpack_latents

FORMAT = "fedkd-handoff"
VERSION = 2
MAX_HEADER_BYTES = 1 << 20
GENERATOR_BYTES = 5056
# Of all lossy tensors together: what decoding may cost. Schedulers keep eight tensors or fewer.
MAX_PACKED, MAX_PACKED_VALUES = 16, 4 * MAX_VALUES
CONDITION_NAMES = (
    "encoder_hidden_states", "text_embeds", "time_ids", "pooled_projections", "control_image", "control_scale"
)  # fmt: skip
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
    `conditions` is None where the receiver keeps the embeddings by session. `form` is the wire form that
    it came in: "exact", or one that has cost the latents some precision.
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
    form: Form = "exact"

    def to_bytes(self, form: Form = "exact") -> bytes:
        """The wire form: safetensors, whose metadata carries a JSON header. No pickle.

        A lossy `form` (see `fedkd.inference.wire`) is for the latents and for the scheduler's tensors of
        their shape; all else stays exact. HandOffError when they have no such form.
        """
        tensors = {"latents": _still(self.latents)}
        header: dict[str, Any] = {"format": FORMAT, "version": VERSION, "form": form}
        for name in FIELDS:
            header[name] = encode(getattr(self, name), tensors, name)
        header["packed"] = _pack(tensors, form)
        if self.generator is not None:
            tensors["generator"] = _still(self.generator)
        header["conditions"] = None if self.conditions is None else {}
        for name, tensor in (self.conditions or {}).items():
            header["conditions"][name] = list(tensor.shape)
            tensors[f"conditions.{name}"] = strip(_still(tensor))
        return save(tensors, metadata={FORMAT: json.dumps(header, allow_nan=False)})

    @classmethod
    def from_bytes(cls, data: bytes, *, model: str | None = None, shape: tuple[int, ...] | None = None) -> HandOff:
        """Read any wire form.

        HandOffError when it is malformed, has numbers that are not finite, belongs to a model other than
        the digest `model`, or has latents of another shape than `shape`.
        """
        header, tensors = _read(data)
        try:
            form = check_form(header["form"])
            _unpack(tensors, header["packed"], form, shape)
            values = {name: decode(header[name], tensors) for name in FIELDS}
            latents = tensors["latents"]
            conditions = _conditions(header["conditions"], tensors)
        except KeyError as error:
            raise HandOffError(f"malformed hand-off: it lacks {error}") from error
        except (CodecError, WireError) as error:
            raise HandOffError(f"malformed hand-off: {error}") from error
        if model is not None and values["model"] != model:
            raise HandOffError(
                f"the hand-off is for another model ({str(values['model'])[:12]}, here {model[:12]}); "
                "open a new session"
            )
        found = cls(latents=latents, generator=tensors.get("generator"), conditions=conditions, form=form, **values)
        if shape is not None and tuple(latents.shape) != tuple(shape):
            raise HandOffError(f"hand-off refused: latents of shape {tuple(latents.shape)}, expected {tuple(shape)}")
        _check(found)
        return found


def _pack(tensors: dict[str, torch.Tensor], form: Form) -> dict[str, Any]:
    """Put tensors like the latents in a lossy form, in place; answers what reading each one takes."""
    try:
        check_form(form)
        if form == "exact":
            return {}
        shape = tensors["latents"].shape
        wanted = [key for key, tensor in tensors.items() if tensor.shape == shape and tensor.is_floating_point()]
        facts: dict[str, Any] = {}
        for key in wanted[:MAX_PACKED]:
            packed = pack_latents(tensors[key], form)
            tensors[key] = torch.frombuffer(bytearray(packed.data), dtype=torch.uint8)
            facts[key] = {"shape": list(packed.shape), "dtype": packed.dtype, "limit": packed.limit}
        return facts
    except WireError as error:
        raise HandOffError(f"hand-off cannot be written: {error}") from error


def _unpack(tensors: dict[str, torch.Tensor], facts: Any, form: Form, expected: tuple[int, ...] | None) -> None:
    """Restore the tensors that came in a lossy form, in place."""
    lossy = form != "exact"
    if not isinstance(facts, dict) or bool(facts) != lossy or (lossy and "latents" not in facts):
        raise WireError(f"a hand-off in the form {form} names other tensors as packed")
    if len(facts) > MAX_PACKED:
        raise WireError(f"more than {MAX_PACKED} tensors in lossy forms")
    values = 0
    for key, fact in facts.items():
        shape, dtype, limit = _fact(key, fact)
        if expected is not None and shape != tuple(expected):
            raise WireError(f"latents of shape {shape}, expected {tuple(expected)}")
        values += math.prod(shape)
        if values > MAX_PACKED_VALUES:
            raise WireError(f"more than {MAX_PACKED_VALUES} values in lossy forms")
        sent = tensors[key]
        if sent.dtype != torch.uint8 or sent.ndim != 1:
            raise WireError(f"{key!r} is not in the form {form}")
        tensors[key] = unpack_latents(Packed(sent.numpy().tobytes(), form, shape, dtype, limit))


def _fact(key: str, fact: Any) -> tuple[tuple[int, ...], str, float]:
    """Shape, dtype and limit of a tensor in a lossy form, as the header says them."""
    if isinstance(fact, dict):
        shape, dtype, limit = fact.get("shape"), fact.get("dtype"), fact.get("limit")
        sides = shape if isinstance(shape, list) else [None]
        if all(type(side) is int and side > 0 for side in sides) and isinstance(dtype, str) and type(limit) is float:
            return tuple(sides), dtype, limit
    raise WireError(f"what reading {key!r} takes is not said")


def _conditions(shapes: Any, tensors: dict[str, torch.Tensor]) -> dict[str, torch.Tensor] | None:
    if shapes is None:
        return None
    if not isinstance(shapes, dict) or not set(shapes) <= set(CONDITION_NAMES):
        raise HandOffError(f"malformed hand-off: conditions are some of {', '.join(CONDITION_NAMES)}")
    try:
        return {name: restore(tensors[f"conditions.{name}"], shape) for name, shape in shapes.items()}
    except ValueError as error:
        raise HandOffError(f"malformed hand-off: {error}") from error


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
