"""The diffusion actor beside Eq. 10 computed number by number."""

import math

import numpy as np
import pytest
import torch

from fedkd.planning.learning import latent_diffusion as diffusion
from fedkd.planning.learning.stacked import layers

STEPS, STATES, ACTIONS, HIDDEN = 5, 4, 3, 6


@pytest.fixture
def parts():
    generator = torch.Generator().manual_seed(3)
    weights = layers(diffusion.actor_sizes(STATES, ACTIONS, HIDDEN), 2, generator)
    weights = [each.detach().double().requires_grad_() for each in weights]
    drawn = [torch.randn(*shape, generator=generator).double() for shape in ((2, 7, STATES), (2, 7, ACTIONS))]
    return weights, *drawn, torch.randn(STEPS - 1, 2, 7, ACTIONS, generator=generator).double()


def by_hand(weights, state, latent, noise, agent, row):
    """Eq. 10 for one agent and one task, from the formulas below it."""
    w1, b1, w2, b2, w3, b3 = (each.detach().numpy()[agent] for each in weights)
    betas = [1 - math.exp(-0.1 / STEPS - (2 * i - 1) / (2 * STEPS**2) * 9.9) for i in range(1, STEPS + 1)]
    kept = [1 - beta for beta in betas]
    bars = [math.prod(kept[:i]) for i in range(STEPS + 1)]
    x = latent.numpy()[agent, row]
    for i in range(STEPS, 0, -1):
        rates = np.exp(np.arange(8) * -math.log(10_000) / 7)
        code = np.concatenate([np.sin(i * rates), np.cos(i * rates)])
        hidden = np.maximum(np.concatenate([x, code, state.numpy()[agent, row]]) @ w1 + b1[0], 0)
        error = np.maximum(hidden @ w2 + b2[0], 0) @ w3 + b3[0]
        spread = (1 - bars[i - 1]) / (1 - bars[i]) * betas[i - 1]
        epsilon = noise.numpy()[i - 2, agent, row] if i > 1 else 0.0  # of variance 0 at i = 1
        x = (x - betas[i - 1] / math.sqrt(1 - bars[i]) * error) / math.sqrt(kept[i - 1]) + spread / 2 * epsilon
    return x


@pytest.mark.parametrize("bound", [0.0, 1e6])
def test_the_chain_is_equation_10_where_nothing_is_cut_off(parts, bound):
    weights, state, latent, noise = parts
    found = diffusion.denoise(weights, state, latent, STEPS, bound, noise).detach().numpy()
    for agent, row in ((0, 0), (0, 6), (1, 2)):
        np.testing.assert_allclose(found[agent, row], by_hand(weights, state, latent, noise, agent, row), rtol=1e-6)


def test_as_printed_the_chain_multiplies_what_it_starts_from(parts):
    weights, state, latent, _ = parts
    silent = [torch.zeros_like(each) for each in weights]
    found = diffusion.denoise(silent, state, latent, STEPS, 0.0, None)
    np.testing.assert_allclose(found.numpy(), 12.5 * latent.numpy(), rtol=0.01)


def test_a_bound_holds_and_leaves_a_gradient_where_it_cuts(parts):
    weights, state, latent, _ = parts
    found = diffusion.denoise(weights, state, 10 * latent, STEPS, 1.0, None)
    assert found.abs().max() <= 1 + 1e-9
    assert (found.abs() > 1 - 1e-9).double().mean() > 0.5
    found.sum().backward()
    assert all(each.grad.abs().max() > 0 for each in weights)


def test_the_gradient_is_that_of_small_differences(parts):
    weights, state, latent, noise = parts
    assert torch.autograd.gradcheck(
        lambda *given: diffusion.denoise(list(given), state, latent, STEPS, 0.0, noise), tuple(weights), fast_mode=True
    )
