"""Conditions without what a receiver can put back: zeros that pad them, and rows that are all the same."""

from __future__ import annotations

import math

import torch

MAX_VALUES = 1 << 24  # of one condition: 64 MB in float32; six control images of 1024²
_BITS = {1: torch.uint8, 2: torch.int16, 4: torch.int32, 8: torch.int64}


def strip(condition: torch.Tensor) -> torch.Tensor:
    """The leading block of `condition` (rows, ...) from which `restore` makes it again, bit for bit.

    SD3 without its T5 has 256 of 333 embedding rows that are zero but take part in attention; a control
    image is the same in both guidance rows.
    """
    bits = condition.contiguous().view(_BITS[condition.element_size()])  # so that -0.0 is no zero
    for axis in range(1, condition.ndim):
        others = [place for place in range(condition.ndim) if place != axis]
        used = torch.nonzero((bits != 0).any(dim=others) if others else bits != 0)
        condition = condition.narrow(axis, 0, int(used[-1]) + 1 if len(used) else 1)
    if condition.shape[0] > 1 and bool((bits == bits[:1]).all()):
        condition = condition[:1]
    return condition.contiguous()


def restore(block: torch.Tensor, shape: object) -> torch.Tensor:
    """The condition of `shape` whose leading block is `block`; ValueError when that cannot be."""
    if not isinstance(shape, list) or not all(type(side) is int and side > 0 for side in shape):
        raise ValueError("a condition's shape is no list of positive numbers")
    fits = len(shape) == block.ndim > 0 and block.numel() > 0 and block.shape[0] in (1, shape[0])
    if not fits or any(sent > side for sent, side in zip(block.shape, shape, strict=True)):
        raise ValueError(f"a block of shape {tuple(block.shape)} is no part of a condition of shape {shape}")
    if math.prod(shape) > MAX_VALUES:
        raise ValueError(f"a condition of shape {shape} has more than {MAX_VALUES} values")
    whole = torch.zeros(shape, dtype=block.dtype)
    whole[(slice(None), *(slice(0, side) for side in block.shape[1:]))] = block
    return whole
