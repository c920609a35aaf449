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
        huber = sum(0.5 * x * x if abs(x) <= 0.1 else 0.1 * (abs(x) - 0.05) for x in differences) / len(differences)
        assert float(distance(a, b, "mse")[row]) == pytest.approx(mse, rel=1e-5)
        assert float(distance(a, b, "huber", huber_delta=0.1)[row]) == pytest.approx(huber, rel=1e-5)


def test_ssim_is_that_of_wang_and_others() -> None:
    """Means, variances and covariance under a Gaussian window of sigma 1, mirrored at the edges, K = (0.01, 0.03)."""
    generator = torch.Generator().manual_seed(0)
    a, b = (torch.rand(2, 3, 16, 16, generator=generator) * 2 - 1 for _ in range(2))
    places = torch.arange(9) - 4.0
    line = torch.exp(-(places**2) / 2)
    window = torch.outer(line, line) / line.sum() ** 2

    def blurred(x: torch.Tensor) -> torch.Tensor:
        x = torch.nn.functional.pad(x, (4, 4, 4, 4), mode="reflect")
        return (x.unfold(2, 9, 1).unfold(3, 9, 1) * window).sum((-1, -2))

    mean_a, mean_b = blurred(a), blurred(b)
    var_a, var_b = blurred(a * a) - mean_a**2, blurred(b * b) - mean_b**2
    both = blurred(a * b) - mean_a * mean_b
    c1, c2 = (0.01 * 2) ** 2, (0.03 * 2) ** 2
    ssim = (2 * mean_a * mean_b + c1) * (2 * both + c2) / ((mean_a**2 + mean_b**2 + c1) * (var_a + var_b + c2))
    found = distance(a, b, "ssim", decode=lambda x: x)
    assert torch.allclose(found, 1 - ssim.mean((1, 2, 3)), atol=1e-3)


def test_ssim_is_taken_of_decoded_pictures_and_moves_the_latents() -> None:
    a, b = (torch.rand(2, 4, 4, 4, generator=torch.Generator().manual_seed(i)).requires_grad_(True) for i in range(2))

    def decode(x: torch.Tensor) -> torch.Tensor:
        return torch.nn.functional.interpolate(x[:, :3], scale_factor=4)

    found = distance(a, b, "ssim", decode=decode)
    assert torch.allclose(found, distance(decode(a), decode(b), "ssim", decode=lambda x: x))
    (slope,) = torch.autograd.grad(found.sum(), a)
    assert slope.abs().max() > 0


@pytest.mark.parametrize("kind", ["ssim", "lpips"])
def test_distances_of_pictures_need_a_decoder(kind: str) -> None:
    with pytest.raises(ValueError, match=f"distillation.distance='{kind}'.*decoder"):
        distance(torch.zeros(1, 4, 8, 8), torch.zeros(1, 4, 8, 8), kind)


def test_unknown_names_are_named() -> None:
    with pytest.raises(ValueError, match=r"distillation\.weighting='none'"):
        timestep_weight(torch.ones(1), "none")
    with pytest.raises(ValueError, match=r"distillation\.distance='l7'"):
        distance(torch.zeros(1, 4, 8, 8), torch.zeros(1, 4, 8, 8), "l7", decode=lambda x: x)


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
    assert float(total_loss(torch.tensor(2.0), torch.tensor(10.0), 0.25)) == pytest.approx(0.75 * 2 + 0.25 * 10)
