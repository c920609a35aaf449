"""A noisy channel: every bit that is sent flips on its own with a given probability."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import torch

from fedkd.inference.wire import Form, pack_latents, unpack_latents


def flip_bits(data: bytes, rate: float, seed: int) -> bytes:
    """`data` after a binary symmetric channel that flips each bit with probability `rate`.

    ValueError unless `rate` is from 0 to 1.
    """
    if not 0.0 <= rate <= 1.0:
        raise ValueError(f"rate={rate} is no probability; give 0 to 1")
    flips = np.random.default_rng(seed).random(8 * len(data), np.float32) < rate
    return (np.frombuffer(data, np.uint8) ^ np.packbits(flips)).tobytes()


def over_channel(
    latents: torch.Tensor, form: Form, *, bit_flip_rate: float, seed: int, limit: float | None = None
) -> torch.Tensor:
    """What arrives of `latents`, any shape, sent in a wire form over a channel that flips bits.

    Shape, dtype and `limit` (see `pack_latents`) arrive whole: they travel in the protected header.
    Always finite, for the exact form alone raises WireError where bits made a value that is not.
    """
    packed = pack_latents(latents, form, limit=limit)
    return unpack_latents(replace(packed, data=flip_bits(packed.data, bit_flip_rate, seed)))
