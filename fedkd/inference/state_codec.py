"""Plain values and tensors as JSON beside a flat dict of tensors, and back, exactly."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import numpy as np
import torch

MAX_DEPTH = 8
NUMPY_SCALARS = {"bool", "int8", "int16", "int32", "int64", "uint8", "uint16", "uint32", "uint64"} | {
    f"float{bits}" for bits in (16, 32, 64)
}


class CodecError(ValueError):
    """A value that has no exact wire form, or JSON that is not one."""


def encode(value: Any, tensors: dict[str, torch.Tensor], key: str) -> Any:
    """JSON for `value`; its tensors and arrays are cloned into `tensors` under names that start with `key`.

    None, booleans, integers, strings and finite floats stand for themselves, lists stay lists; all else
    becomes an object with one tag: `float` (nan, inf), `tensor`, `array`, `numpy`, `tuple` or `dict`.
    """
    if value is None or isinstance(value, bool | str) or type(value) is int:
        return value
    if isinstance(value, np.generic):
        if value.dtype.name not in NUMPY_SCALARS:
            raise CodecError(f"{key}: numpy scalar of type {value.dtype.name} has no wire form")
        return {"numpy": value.dtype.name, "value": encode(value.item(), tensors, key)}
    if isinstance(value, float):
        return value if math.isfinite(value) else {"float": repr(value)}
    if isinstance(value, torch.Tensor):
        tensors[key] = value.detach().cpu().clone().contiguous()
        return {"tensor": key}
    if isinstance(value, np.ndarray):
        try:
            tensors[key] = torch.from_numpy(np.array(value, order="C"))
        except TypeError as error:
            raise CodecError(f"{key}: numpy array of type {value.dtype} has no wire form") from error
        return {"array": key}
    if isinstance(value, list | tuple):
        items = [encode(item, tensors, f"{key}.{place}") for place, item in enumerate(value)]
        return items if isinstance(value, list) else {"tuple": items}
    if isinstance(value, Mapping):
        if not all(isinstance(name, str) for name in value):
            raise CodecError(f"{key}: only text keys have a wire form")
        return {"dict": {name: encode(item, tensors, f"{key}.{name}") for name, item in value.items()}}
    raise CodecError(f"{key}: a {type(value).__name__} has no wire form")


def decode(form: Any, tensors: Mapping[str, torch.Tensor], depth: int = 0) -> Any:
    """The value that `encode` put into `form` and `tensors`; CodecError if `form` is not such JSON."""
    if depth > MAX_DEPTH:
        raise CodecError("state is nested too deeply")
    if form is None or isinstance(form, bool | int | str):
        return form
    if isinstance(form, float):
        if not math.isfinite(form):
            raise CodecError("JSON numbers must be finite")
        return form
    if isinstance(form, list):
        return [decode(item, tensors, depth + 1) for item in form]
    if isinstance(form, dict):
        return _decode_tagged(form, tensors, depth)
    raise CodecError(f"unknown JSON value of type {type(form).__name__}")


def _decode_tagged(form: dict[str, Any], tensors: Mapping[str, torch.Tensor], depth: int) -> Any:
    tags = set(form)
    if tags == {"tensor"} or tags == {"array"}:
        ((tag, name),) = form.items()
        if not isinstance(name, str) or name not in tensors:
            raise CodecError(f"{tag} {name!r} is named in the header but not sent")
        tensor = tensors[name].clone()
        return tensor if tag == "tensor" else tensor.numpy()
    if tags == {"float"} and form["float"] in ("nan", "inf", "-inf"):
        return float(form["float"])
    if tags == {"numpy", "value"} and form["numpy"] in NUMPY_SCALARS:
        value = decode(form["value"], tensors, depth + 1)
        if not isinstance(value, bool | int | float):
            raise CodecError("a numpy scalar must be a number")
        try:
            return np.dtype(form["numpy"]).type(value)
        except (OverflowError, ValueError) as error:
            raise CodecError(f"{value} does not fit {form['numpy']}") from error
    if tags == {"tuple"} and isinstance(form["tuple"], list):
        return tuple(decode(item, tensors, depth + 1) for item in form["tuple"])
    if tags == {"dict"} and isinstance(form["dict"], dict):
        return {name: decode(item, tensors, depth + 1) for name, item in form["dict"].items()}
    raise CodecError(f"unknown tag in state: {sorted(map(str, tags))[:3]}")
