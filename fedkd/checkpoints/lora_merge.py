"""A LoRA file merged into stored weights, to the same bytes on every machine."""

from __future__ import annotations

import json
import math
import os
import shutil
from pathlib import Path
from typing import Any

import numpy as np

from fedkd.checkpoints.manifest import CheckpointError

LORA_NAME = "pytorch_lora_weights.safetensors"
_FLOATS: dict[str, np.dtype[Any]] = {"F64": np.dtype("<f8"), "F32": np.dtype("<f4"), "F16": np.dtype("<f2")}
_HALVES = (".lora_A.weight", ".lora_B.weight")


def merge_lora(base: Path, lora: Path, target: Path) -> bool:
    """Write to `target` the weights file `base` with W + B A for every module of `lora`; whether any was changed.

    Both are safetensors; `lora` is in diffusers' form (`unet.MODULE.lora_A.weight` (r, in…) and `lora_B.weight`
    (out, r…), the scale folded in). Sums run over the rank in float32, product by product, so that IEEE 754 fixes
    every bit; a matrix product's order, and so its bits, would depend on the machine. CheckpointError when a
    module does not fit.
    """
    shutil.copyfile(base, target)
    os.chmod(target, 0o644)
    pairs = _pairs(lora)
    with target.open("r+b") as stream:
        header, start = _header(stream)
        for module, (down, up) in sorted(pairs.items()):
            facts = header.get(f"{module}.weight")
            if facts is None:
                continue
            begin, end = facts["data_offsets"]
            stream.seek(start + begin)
            weight = _decode(stream.read(end - begin), facts["dtype"]).reshape(facts["shape"])
            merged = _merged(weight, down, up, module)
            stream.seek(start + begin)
            stream.write(_encode(merged, facts["dtype"]))
    return any(f"{module}.weight" in header for module in pairs)


def modules_of(path: Path) -> set[str]:
    """Modules that a LoRA file in diffusers' form changes, without the component's name."""
    return set(_pairs(path))


def tensors_of(path: Path) -> set[str]:
    """Names of the tensors of a safetensors file."""
    with path.open("rb") as stream:
        return set(_header(stream)[0]) - {"__metadata__"}


def _merged(weight: np.ndarray, down: np.ndarray, up: np.ndarray, module: str) -> np.ndarray:
    rank = down.shape[0]
    rows, columns = up.reshape(-1, rank), down.reshape(rank, -1)
    if weight.size != rows.shape[0] * columns.shape[1] or weight.shape[0] != rows.shape[0]:
        raise CheckpointError(f"the LoRA file does not fit '{module}' of shape {weight.shape}")
    total = weight.reshape(rows.shape[0], -1).astype(np.float32)
    product = np.empty_like(total)
    for k in range(rank):
        np.multiply(rows[:, k, None], columns[k], out=product)
        np.add(total, product, out=total)
    return total


def _pairs(path: Path) -> dict[str, tuple[np.ndarray, np.ndarray]]:
    """{module: (A, B)} in float32."""
    found: dict[str, dict[str, np.ndarray]] = {}
    with path.open("rb") as stream:
        header, start = _header(stream)
        for key, facts in header.items():
            if key == "__metadata__":
                continue
            half = next((half for half in _HALVES if key.endswith(half)), None)
            if half is None:
                raise CheckpointError(f"'{key}' in '{path.name}' is no LoRA weight in diffusers' form")
            begin, end = facts["data_offsets"]
            stream.seek(start + begin)
            module = key.removesuffix(half).partition(".")[2]
            value = _decode(stream.read(end - begin), facts["dtype"]).reshape(facts["shape"])
            found.setdefault(module, {})[half] = value.astype(np.float32)
    try:
        return {module: (pair[_HALVES[0]], pair[_HALVES[1]]) for module, pair in found.items()}
    except KeyError as error:
        raise CheckpointError(f"'{path.name}' has a module without its {error} half") from error


def _header(stream: Any) -> tuple[dict[str, Any], int]:
    """The header of a safetensors file, and where its data begins; CheckpointError when it is none."""
    size = os.fstat(stream.fileno()).st_size
    length = int.from_bytes(stream.read(8), "little")
    if not 2 <= length <= min(size - 8, 100_000_000):
        raise CheckpointError("a file to be merged is no safetensors file")
    try:
        header = dict(json.loads(stream.read(length)))
        for key, facts in header.items():
            if key != "__metadata__":
                _check_extent(facts, size - 8 - length)
    except (ValueError, TypeError, KeyError, RecursionError) as error:
        raise CheckpointError(f"a file to be merged has a broken safetensors header: {error}") from error
    return header, 8 + length


def _check_extent(facts: dict[str, Any], data_bytes: int) -> None:
    (begin, end), shape = facts["data_offsets"], facts["shape"]
    width = {**{name: kind.itemsize for name, kind in _FLOATS.items()}, "BF16": 2}.get(facts["dtype"])
    if not 0 <= begin <= end <= data_bytes or (width and end - begin != width * math.prod(shape)):
        raise ValueError("a tensor lies outside the file")


def _decode(data: bytes, dtype: str) -> np.ndarray:
    if dtype == "BF16":
        return (np.frombuffer(data, "<u2").astype(np.uint32) << 16).view(np.float32)
    if dtype not in _FLOATS:
        raise CheckpointError(f"weights of type {dtype} cannot be merged; store them as F32, F16 or BF16")
    return np.frombuffer(data, _FLOATS[dtype])


def _encode(values: np.ndarray, dtype: str) -> bytes:
    """float32 values in the file's type, rounded to nearest even; CheckpointError when one becomes infinite."""
    if dtype == "BF16":
        bits = np.ascontiguousarray(values).view(np.uint32)
        rounded = (bits + 0x7FFF + ((bits >> 16) & 1)) >> 16
        finite = bool(np.isfinite((rounded << 16).view(np.float32)).all())
        data = rounded.astype("<u2").tobytes()
    else:
        with np.errstate(over="ignore"):
            cast = values.astype(_FLOATS[dtype])
        finite, data = bool(np.isfinite(cast).all()), cast.tobytes()
    if not finite:
        raise CheckpointError(f"the merged weights do not fit into {dtype}; the LoRA file is too strong or damaged")
    return data
