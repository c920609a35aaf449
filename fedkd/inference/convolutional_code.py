"""The K=7, rate-1/2 convolutional code (171, 133) over bytes, decoded by Viterbi's algorithm on hard bits."""

from __future__ import annotations

import math

import numpy as np
import numpy.typing as npt

GENERATORS = (0o171, 0o133)
MEMORY = 6  # K - 1: the bits that a state holds, and the zero bits that end a frame
FRAME_BYTES = 256  # frames are decoded side by side; each costs 12 coded bits for its end
FRAMES_AT_ONCE = 256  # bounds the survivors kept in memory, at 34 MB
# Metrics count wrong bits in one byte: two states' never differ by more than UNREACHED, and a step adds 2.
UNREACHED = 64
RENORMALISE = 64

Bits = npt.NDArray[np.uint8]


def _frames(size: int) -> tuple[int, int]:
    """(frames, bytes in each) for `size` data bytes, as even as they can be."""
    count = max(1, math.ceil(size / FRAME_BYTES))
    return count, math.ceil(size / count)


def coded_size(size: int) -> int:
    """Bytes that `size` data bytes become: twice as many, and 1.5 a frame."""
    count, length = _frames(size)
    return math.ceil(count * 2 * (8 * length + MEMORY) / 8)


def protect(data: bytes) -> bytes:
    """The coded form of `data`, `coded_size(len(data))` bytes."""
    count, length = _frames(len(data))
    filled = np.zeros(count * length, np.uint8)
    filled[: len(data)] = np.frombuffer(data, np.uint8)
    bits = np.unpackbits(filled.reshape(count, length), axis=1)
    steps = bits.shape[1] + MEMORY
    line = np.pad(bits, ((0, 0), (MEMORY, MEMORY)))
    coded = np.zeros((count, steps, len(GENERATORS)), np.uint8)
    for output, generator in enumerate(GENERATORS):
        for delay in range(MEMORY + 1):
            if generator >> (MEMORY - delay) & 1:
                coded[:, :, output] ^= line[:, MEMORY - delay : MEMORY - delay + steps]
    return np.packbits(coded.reshape(-1)).tobytes()


def recover(coded: bytes, size: int) -> bytes:
    """The `size` data bytes whose coded form is nearest to `coded` in bits.

    ValueError unless `coded` has `coded_size(size)` bytes.
    """
    if len(coded) != coded_size(size):
        raise ValueError(f"{len(coded)} coded bytes cannot carry {size}; expected {coded_size(size)}")
    count, length = _frames(size)
    steps = 8 * length + MEMORY
    received = np.unpackbits(np.frombuffer(coded, np.uint8), count=count * steps * 2)
    pairs = received.reshape(count, steps, 2)
    symbols = np.ascontiguousarray((pairs[:, :, 0] << 1 | pairs[:, :, 1]).T)
    parts = [_viterbi(symbols[:, place : place + FRAMES_AT_ONCE]) for place in range(0, count, FRAMES_AT_ONCE)]
    return np.packbits(np.concatenate(parts)[:, :-MEMORY], axis=1).reshape(-1)[:size].tobytes()


def _sent() -> Bits:
    """(128,): the pair of coded bits, as 0 to 3, of each branch (newest bit, older five, oldest)."""
    register = np.arange(128, dtype=np.uint8)
    first, second = (np.bitwise_count(register & generator) & 1 for generator in GENERATORS)
    return first << 1 | second


def _viterbi(symbols: Bits) -> Bits:
    """Bits (F, steps) of the likeliest path from state 0 to state 0 for received pairs (steps, F)."""
    steps, count = symbols.shape
    sent = _sent()
    pairs = np.arange(4, dtype=np.uint8)[:, None]
    metric = np.full((64, count), UNREACHED, np.uint8)
    metric[0] = 0
    survivors = np.empty((steps, 64, count), np.bool_)
    for step in range(steps):
        # state = newest bit (1), older five (32 values); its two predecessors differ in the bit that leaves
        branches = np.take(np.bitwise_count(pairs ^ symbols[step]), sent, axis=0).reshape(2, 32, 2, count)
        branches += metric.reshape(1, 32, 2, count)
        zero, one = branches[:, :, 0], branches[:, :, 1]
        np.less(one, zero, out=survivors[step].reshape(2, 32, count))
        metric = np.minimum(zero, one)
        if step % RENORMALISE == 0:
            metric -= metric.reshape(64, count).min(axis=0)
    decoded = np.empty((steps, count), np.uint8)
    state, frames = np.zeros(count, np.intp), np.arange(count)
    for step in range(steps - 1, -1, -1):
        decoded[step] = state >> 5
        state = (state & 31) << 1 | survivors[step, state, frames]
    return np.ascontiguousarray(decoded.T)
