"""Latents survive every wire form as well as it promises, and a noisy channel never makes them not finite."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from fedkd.inference import convolutional_code
from fedkd.inference.channel import flip_bits, over_channel
from fedkd.inference.wire import DTYPES, FORMS, Packed, WireError, pack_latents, packed_size, unpack_latents

QUANTISED = ("uint8", "uint8_gray", "uint8_protected")
LOSSY = ("fp16", *QUANTISED)
ARRAYS = hnp.arrays(
    np.float32,
    hnp.array_shapes(min_dims=4, max_dims=4, max_side=5),
    elements=st.floats(-60_000, 60_000, width=32),
).map(torch.from_numpy)


@pytest.fixture(scope="module")
def noise() -> torch.Tensor:
    """N(0, 1) latents of a 512² picture, (1, 4, 64, 64)."""
    return torch.randn(1, 4, 64, 64, generator=torch.Generator().manual_seed(0))


def rms(a: torch.Tensor, b: torch.Tensor) -> float:
    return float((a.double() - b.double()).square().mean().sqrt())


# form, bytes, signal-to-noise ratio without flips (dB), RMS error at 2% flips; EQUATIONS section 6
TABLE = [
    ("fp16", 32_768, None, 0.408),
    ("uint8", 16_384, 40.5, 0.650),
    ("uint8_gray", 16_384, 40.5, 0.512),
    ("uint8_protected", 32_860, 40.5, 0.021),
]


@pytest.mark.parametrize(("form", "size_bytes", "clean_db", "error"), TABLE)
def test_bytes_precision_and_error_at_two_percent_flips_are_those_of_the_table(
    noise: torch.Tensor, form: Any, size_bytes: int, clean_db: float | None, error: float
) -> None:
    packed = pack_latents(noise, form, limit=4.0)
    assert len(packed.data) == packed_size(form, noise.numel())
    assert len(packed.data) == pytest.approx(size_bytes, rel=2e-4)
    if clean_db is not None:
        clean = 20 * np.log10(1 / rms(unpack_latents(packed), noise))
        assert clean == pytest.approx(clean_db, abs=0.1)
    runs = [rms(over_channel(noise, form, bit_flip_rate=0.02, seed=seed, limit=4.0), noise) for seed in range(12)]
    # the errors that the decoder leaves are few and large, so that they vary from run to run
    rel = 0.3 if form == "uint8_protected" else 0.03
    assert np.sqrt(np.mean(np.square(runs))) == pytest.approx(error, rel=rel)


def test_half_precision_without_a_limit_is_ruined_by_the_same_flips(noise: torch.Tensor) -> None:
    sent = noise.half().numpy().astype("<f2").tobytes()
    found = np.frombuffer(flip_bits(sent, 0.02, seed=0), "<f2").astype(np.float64)
    finite = np.isfinite(found)
    assert 1 - finite.mean() == pytest.approx(0.005, abs=0.002)
    error = np.sqrt(np.square(found[finite] - noise.numpy().ravel()[finite]).mean())
    assert error == pytest.approx(4e3, rel=0.1)


@settings(max_examples=60, deadline=None)
@given(latents=ARRAYS, form=st.sampled_from(FORMS), dtype=st.sampled_from(sorted(DTYPES)))
def test_any_latents_come_back_within_the_forms_precision(latents: torch.Tensor, form: Any, dtype: str) -> None:
    latents = latents.to(DTYPES[dtype])
    found = unpack_latents(pack_latents(latents, form))
    assert found.dtype == latents.dtype and found.shape == latents.shape
    if form == "exact" or (form == "fp16" and dtype == "float16"):
        assert torch.equal(found, latents)
        return
    largest = float(latents.double().abs().max())
    step = largest / 254 if form != "fp16" else largest * 2**-11 + 2**-24
    rounding = largest * torch.finfo(latents.dtype).eps
    assert float((found.double() - latents.double()).abs().max()) <= step * 1.001 + rounding


@settings(max_examples=60, deadline=None)
@given(
    latents=ARRAYS,
    form=st.sampled_from(LOSSY),
    dtype=st.sampled_from(sorted(DTYPES)),
    rate=st.floats(0, 1),
    seed=st.integers(0, 2**32),
)
def test_no_channel_makes_lossy_latents_not_finite_or_larger(
    latents: torch.Tensor, form: Any, dtype: str, rate: float, seed: int
) -> None:
    latents = latents.to(DTYPES[dtype])
    packed = pack_latents(latents, form)
    found = unpack_latents(replace(packed, data=flip_bits(packed.data, rate, seed)))
    assert torch.isfinite(found).all()
    assert float(found.abs().double().max()) <= packed.limit * (1 + torch.finfo(latents.dtype).eps)


@settings(max_examples=40, deadline=None)
@given(form=st.sampled_from(LOSSY), data=st.binary(min_size=512, max_size=512), limit=st.floats(1e-6, 6e4))
def test_any_bytes_of_the_right_number_are_finite_latents(form: Any, data: bytes, limit: float) -> None:
    size = packed_size(form, 60)
    found = unpack_latents(Packed(data[:size], form, (1, 4, 3, 5), "float16", limit))
    assert torch.isfinite(found).all()


def test_zero_is_kept_exactly_by_every_form() -> None:
    zeros = torch.zeros(1, 4, 8, 8)
    beside = torch.linspace(-3, 7, 256).reshape(1, 4, 8, 8)
    beside[0, 0] = 0
    for form in FORMS:
        assert torch.equal(unpack_latents(pack_latents(zeros, form)), zeros)
        assert not unpack_latents(pack_latents(beside, form))[0, 0].any()


@settings(max_examples=25, deadline=None)
@given(st.binary(max_size=700))
def test_coded_bytes_come_back(data: bytes) -> None:
    coded = convolutional_code.protect(data)
    assert len(coded) == convolutional_code.coded_size(len(data))
    assert convolutional_code.recover(coded, len(data)) == data


@settings(max_examples=25, deadline=None)
@given(data=st.binary(min_size=1, max_size=600), places=st.sets(st.integers(0, 59), max_size=4))
def test_four_wrong_bits_in_every_128_are_mended(data: bytes, places: set[int]) -> None:
    # the code's free distance is 10, so four flips close together can always be undone
    coded = np.unpackbits(np.frombuffer(convolutional_code.protect(data), np.uint8))
    for start in range(0, len(coded), 128):
        coded[[start + place for place in places if start + place < len(coded)]] ^= 1
    assert convolutional_code.recover(np.packbits(coded).tobytes(), len(data)) == data


def test_the_code_is_the_standard_one() -> None:
    # one bit of one, then zeros: the two generators, bit by bit, in turn
    bits = np.unpackbits(np.frombuffer(convolutional_code.protect(b"\x80"), np.uint8))
    first, second = (int("".join(map(str, bits[place:14:2])), 2) for place in (0, 1))
    assert (oct(first), oct(second)) == ("0o171", "0o133")


def test_frames_of_a_large_tensor_are_decoded_in_parts() -> None:
    data = np.random.default_rng(0).bytes(256 * 300 + 17)
    coded = flip_bits(convolutional_code.protect(data), 0.01, seed=1)
    assert convolutional_code.recover(coded, len(data)) == data


@pytest.mark.parametrize(
    ("change", "expected"),
    [
        ({"form": "zip"}, "give one of exact"),
        ({"data": b"123"}, "3 bytes are not latents"),
        ({"shape": (1, 4, 8, 9)}, "are not latents"),
        ({"shape": (1, -4, 8, -8)}, "0 to"),
        ({"shape": (1, 4, 8192, 8192)}, "0 to"),
        ({"dtype": "int64"}, "dtype 'int64'"),
        ({"limit": float("nan")}, "limit nan"),
        ({"limit": float("inf")}, "limit inf"),
        ({"limit": -1.0}, "limit -1.0"),
        ({"limit": 1e39}, "limit 1e"),
    ],
)
@pytest.mark.parametrize("form", LOSSY)
def test_packed_latents_that_cannot_be_are_refused(form: Any, change: dict[str, Any], expected: str) -> None:
    packed = pack_latents(torch.ones(1, 4, 8, 8), form)
    with pytest.raises(WireError, match=expected):
        unpack_latents(replace(packed, **change))


@pytest.mark.parametrize(
    ("latents", "form", "expected"),
    [
        (torch.full((1, 4, 8, 8), float("nan")), "uint8", "not finite"),
        (torch.full((1, 4, 8, 8), float("inf")), "exact", "not finite"),
        (torch.full((1, 4, 8, 8), 7e4), "fp16", "do not fit fp16"),
        (torch.zeros(1, 4, 8, 8, dtype=torch.int64), "uint8", "dtype int64"),
        (torch.zeros(1, 4, 1024, 1024), "uint8", "wire='exact'"),
        (torch.zeros(1, 4, 8, 8), "raw", "not known"),
    ],
)
def test_latents_without_a_wire_form_are_refused(latents: torch.Tensor, form: Any, expected: str) -> None:
    with pytest.raises(WireError, match=expected):
        pack_latents(latents, form)


def test_exact_bytes_that_are_no_numbers_are_refused() -> None:
    packed = pack_latents(torch.ones(1, 4, 8, 8), "exact")
    with pytest.raises(WireError, match="not finite"):
        unpack_latents(replace(packed, data=b"\xff" * len(packed.data)))


def test_a_probability_is_from_nought_to_one() -> None:
    with pytest.raises(ValueError, match="give 0 to 1"):
        flip_bits(b"abc", 1.5, seed=0)
