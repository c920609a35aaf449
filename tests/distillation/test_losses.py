"""EUCI Eqs. 5-7 against independent computations."""

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from fedkd.distillation.losses import distance, drawn, normalised, timestep_weight, total_loss

KINDS = ["uniform", "alphas_cumprod", "snr", "truncated_snr", "min_snr"]


@settings(max_examples=50, deadline=None)
@given(st.floats(1e-6, 1 - 1e-6), st.floats(0.1, 20))
def test_timestep_weights_follow_their_formulas(alpha_bar: float, k: float) -> None:
    snr = alpha_bar / (1 - alpha_bar)
    expected = [1.0, alpha_bar, snr, max(snr, 1.0), min(snr, k)]
    for kind, value in zip(KINDS, expected, strict=True):
        assert float(timestep_weight(torch.tensor([snr]), kind, k)) == pytest.approx(value, rel=1e-4)


def test_distances_match_plain_arithmetic() -> None:
    generator = torch.Generator().manual_seed(0)
    a, b = (torch.randn(3, 4, 8, 8, generator=generator) for _ in range(2))
    for row in range(3):
        differences = [float(x) for x in (a[row] - b[row]).flatten()]
        mse = sum(x * x for x in differences) / len(differences)
        huber = sum(0.5 * x * x if abs(x) <= 0.1 else 0.1 * (abs(x) - 0.05) for x in differences) / len(
            differences
        )
        assert float(distance(a, b, "mse")[row]) == pytest.approx(mse, rel=1e-5)
        assert float(distance(a, b, "huber", huber_delta=0.1)[row]) == pytest.approx(huber, rel=1e-5)


def test_ssim_distance_is_zero_for_equal_pictures_and_grows_with_noise() -> None:
    generator = torch.Generator().manual_seed(0)
    a = torch.rand(2, 3, 16, 16, generator=generator) * 2 - 1
    noise = torch.randn(a.shape, generator=generator)
    values = [float(distance(a, a + s * noise, "ssim", decode=lambda x: x).mean()) for s in (0.0, 0.1, 0.5)]
    assert values[0] == pytest.approx(0, abs=1e-5)
    assert values[0] < values[1] < values[2]


@settings(max_examples=30, deadline=None)
@given(st.lists(st.floats(0, 100), min_size=1, max_size=6))
def test_lambda_sums_to_one_and_keeps_its_proportions(raw: list[float]) -> None:
    weights = normalised(torch.tensor([raw]))
    assert float(weights.sum()) == pytest.approx(1, abs=1e-5)
    if math.fsum(raw) > 1e-3:
        assert weights[0].tolist() == pytest.approx([value / math.fsum(raw) for value in raw], abs=1e-4)


def test_drawn_teachers_follow_lambda_in_the_mean() -> None:
    weights = torch.tensor([[0.5, 0.3, 0.2]]).expand(20_000, -1)
    chosen = drawn(weights, torch.Generator().manual_seed(0))
    assert torch.equal(chosen.sum(1), torch.ones(20_000))
    assert chosen.mean(0).tolist() == pytest.approx([0.5, 0.3, 0.2], abs=0.015)


def test_the_total_is_a_convex_combination() -> None:
    assert float(total_loss(torch.tensor(2.0), torch.tensor(10.0), 0.25)) == pytest.approx(
        0.75 * 2 + 0.25 * 10
    )
