"""Wire forms of latents: exact, half precision, and bytes with or without protection against bit flips."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal, get_args

import numpy as np
import numpy.typing as npt
import torch

from fedkd.inference import convolutional_code

Form = Literal["exact", "fp16", "uint8", "uint8_gray", "uint8_protected"]
FORMS: tuple[Form, ...] = get_args(Form)
DTYPES = {
    str(kind).removeprefix("torch."): kind for kind in (torch.float16, torch.bfloat16, torch.float32, torch.float64)
}
MAX_VALUES = 1 << 20  # of one tensor: 16×256×256; decoding a protected form takes a second or two for that many
LEVELS = 127  # on each side of zero, which is kept exactly


class WireError(ValueError):
    """A form that is not known, latents that have none, or bytes that are not in the form they claim."""


@dataclass(frozen=True)
class Packed:
    """Latents as bytes, with the facts that reading them takes.

    `limit` is the largest magnitude that can be: what decodes beyond it is noise. `dtype` is the one to
    restore.
    """

    data: bytes
    form: Form
    shape: tuple[int, ...]
    dtype: str
    limit: float


def check_form(form: object) -> Form:
    """`form` itself; WireError unless it is one of FORMS."""
    if form not in FORMS:
        raise WireError(f"wire={form!r} is not known; give one of {', '.join(FORMS)}")
    return form


def packed_size(form: Form, count: int, dtype: str = "float32") -> int:
    """Bytes on the wire of `count` values, without the header."""
    if form == "exact":
        return count * DTYPES[dtype].itemsize
    if form == "uint8_protected":
        return convolutional_code.coded_size(count)
    return 2 * count if form == "fp16" else count


def pack_latents(latents: torch.Tensor, form: Form, *, limit: float | None = None) -> Packed:
    """`latents`, any shape and floating dtype, in a wire form.

    - `exact`: their own bytes.
    - `fp16`: IEEE half precision; exact for half-precision latents.
    - `uint8`: v = round(127 x / limit) + 128, one byte a value; error ≤ limit / 254.
    - `uint8_gray`: the same in Gray code, so that most flips move a value less.
    - `uint8_protected`: `uint8` in the convolutional code: twice the bytes.

    `limit` is the largest |x| by default; values beyond a smaller one are clipped. WireError for latents
    that are not finite, or too large for fp16 or for a form's bound on size.
    """
    check_form(form)
    values = latents.detach().cpu().contiguous()
    dtype = str(values.dtype).removeprefix("torch.")
    if dtype not in DTYPES:
        raise WireError(f"latents of dtype {dtype} have no wire form; give one of {', '.join(DTYPES)}")
    if not torch.isfinite(values).all():
        raise WireError("latents that are not finite have no wire form")
    if form != "exact" and values.numel() > MAX_VALUES:
        raise WireError(f"{values.numel()} values are more than {MAX_VALUES}; send them as wire='exact'")
    shape = tuple(values.shape)
    largest = float(values.abs().max()) if values.numel() else 0.0
    bound = limit if limit is not None else largest or 1.0
    if not (math.isfinite(bound) and bound > 0):
        raise WireError(f"limit={limit} is not a positive number")
    if form == "exact":
        return Packed(values.reshape(-1).view(torch.uint8).numpy().tobytes(), form, shape, dtype, bound)
    clipped = values.reshape(-1).double().clamp(-bound, bound)
    if form == "fp16":
        halves = clipped.half()
        if not torch.isfinite(halves).all():
            raise WireError(f"values up to {largest:.3g} do not fit fp16; send them as wire='exact'")
        # rounding may carry the largest value over the limit, where it would read as noise
        bound = max(bound, float(halves.abs().max())) if halves.numel() else bound
        return Packed(halves.numpy().astype("<f2").tobytes(), form, shape, dtype, bound)
    data = _to_levels(clipped.numpy(), bound)
    if form == "uint8_gray":
        data ^= data >> 1
    coded = convolutional_code.protect(data.tobytes()) if form == "uint8_protected" else data.tobytes()
    return Packed(coded, form, shape, dtype, bound)


def unpack_latents(packed: Packed) -> torch.Tensor:
    """The latents that `packed` carries, of its shape and dtype; always finite, whatever the bytes.

    WireError when the facts beside the bytes cannot be, or exact bytes are not finite numbers.
    """
    check_form(packed.form)
    dtype = _checked_dtype(packed)
    count = math.prod(packed.shape)
    if len(packed.data) != packed_size(packed.form, count, packed.dtype):
        raise WireError(f"{len(packed.data)} bytes are not latents of shape {packed.shape} in the form {packed.form}")
    if packed.form == "exact":
        values = torch.frombuffer(bytearray(packed.data), dtype=dtype) if count else torch.empty(0, dtype=dtype)
        if not torch.isfinite(values).all():
            raise WireError("latents are not finite")
        return values.reshape(packed.shape)
    if packed.form == "fp16":
        halves = np.frombuffer(packed.data, "<f2").astype(np.float64)
        numbers = np.where(np.abs(halves) <= packed.limit, halves, 0.0)  # NaN compares false
    else:
        data = packed.data
        if packed.form == "uint8_protected":
            data = convolutional_code.recover(data, count)
        levels = np.frombuffer(data, np.uint8)
        if packed.form == "uint8_gray":
            levels = _from_gray(levels)
        numbers = _from_levels(levels, packed.limit)
    return torch.from_numpy(numbers).to(dtype).reshape(packed.shape)


def _checked_dtype(packed: Packed) -> torch.dtype:
    if packed.dtype not in DTYPES:
        raise WireError(f"dtype {packed.dtype!r} is none of {', '.join(DTYPES)}")
    dtype = DTYPES[packed.dtype]
    if not (0 < packed.limit <= torch.finfo(dtype).max):
        raise WireError(f"limit {packed.limit} is not a positive {packed.dtype}")
    if any(side < 0 for side in packed.shape) or (packed.form != "exact" and math.prod(packed.shape) > MAX_VALUES):
        raise WireError(f"latents of shape {packed.shape} are not of 0 to {MAX_VALUES} values")
    return dtype


def _from_gray(code: npt.NDArray[np.uint8]) -> npt.NDArray[np.uint8]:
    value = code.copy()
    for shift in (4, 2, 1):
        value ^= value >> shift
    return value


def _to_levels(values: npt.NDArray[np.float64], limit: float) -> npt.NDArray[np.uint8]:
    return (np.rint(values / limit * LEVELS) + 128).astype(np.uint8)


def _from_levels(levels: npt.NDArray[np.uint8], limit: float) -> npt.NDArray[np.float64]:
    # byte 0 is never sent; a flip that makes it means the lowest value
    return np.maximum(levels.astype(np.float64) - 128, -LEVELS) / LEVELS * limit
