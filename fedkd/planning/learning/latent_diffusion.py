"""The latent action diffusion of LAD-TS (Eqs. 10-13): past action probabilities, denoised into new ones."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import torch

    from fedkd.planning.learning.stacked import Weights

LEAST_BETA, MOST_BETA = 0.1, 10.0  # the paper names them and gives no values; these are D2SAC's
CODE = 16  # numbers in the sinusoidal encoding of i


@dataclass(frozen=True)
class Schedule:
    """beta_i, lambda_i, bar lambda_i, bar lambda_{i-1} and tilde beta_i, each of I numbers, i = 1 first."""

    beta: tuple[float, ...]
    kept: tuple[float, ...]
    all_kept: tuple[float, ...]
    kept_before: tuple[float, ...]
    spread: tuple[float, ...]


def schedule(steps: int) -> Schedule:
    """The variational posterior scheduler below Eq. 10."""
    beta = [
        1 - math.exp(-LEAST_BETA / steps - (2 * i - 1) / (2 * steps**2) * (MOST_BETA - LEAST_BETA))
        for i in range(1, steps + 1)
    ]
    all_kept: list[float] = []
    for each in beta:
        all_kept.append((all_kept[-1] if all_kept else 1.0) * (1 - each))
    before = [1.0, *all_kept[:-1]]
    spread = [(1 - b) / (1 - a) * each for a, b, each in zip(all_kept, before, beta, strict=True)]
    return Schedule(tuple(beta), tuple(1 - each for each in beta), tuple(all_kept), tuple(before), tuple(spread))


def codes(steps: int) -> torch.Tensor:
    """(I, CODE) sinusoidal encodings of i = 1..I."""
    import torch

    rates = torch.exp(torch.arange(CODE // 2) * (-math.log(10_000) / (CODE // 2 - 1)))
    angles = torch.arange(1, steps + 1)[:, None] * rates
    return torch.cat([angles.sin(), angles.cos()], dim=1)


def actor_sizes(states: int, actions: int, hidden: int) -> tuple[int, ...]:
    """Layers of eps_theta(x_i, i, s): its input is [x_i, code of i, s]."""
    return actions + CODE + states, hidden, hidden, actions


def denoise(
    weights: Weights, state: torch.Tensor, latent: torch.Tensor, steps: int, bound: float, noise: torch.Tensor | None
) -> torch.Tensor:
    """x_0 (G, K, A) from x_I = `latent` (G, K, A) and states (G, K, S): I times Eq. 10.

    `noise` (I - 1, G, K, A) is its epsilon for i = 2..I, none for the mean of every step. `bound` keeps the x_0 that
    Eq. 11 implies at each step within -bound..bound, as diffusion models do as a rule: Eq. 10 as printed multiplies x
    by 1/sqrt(bar lambda_I) = 12.5, and since x_0 is the next slot's x_I it overflows within an episode. 0 leaves
    Eq. 10 as printed.
    """
    import torch

    chosen, actions = schedule(steps), latent.shape[-1]
    first, bias, second, bias2, third, bias3 = weights
    # what does not depend on x is computed once
    fixed = torch.baddbmm(bias, state, first[:, actions + CODE :])
    step_part = codes(steps).to(first) @ first[:, actions : actions + CODE]
    x = latent
    for i in range(steps - 1, -1, -1):
        hidden = torch.baddbmm(fixed + step_part[:, i : i + 1], x, first[:, :actions]).relu_()
        hidden = torch.baddbmm(bias2, hidden, second).relu_()
        error = torch.baddbmm(bias3, hidden, third)
        beta, kept, all_kept = chosen.beta[i], chosen.kept[i], chosen.all_kept[i]
        if bound:
            clean = (x / math.sqrt(all_kept)).sub(error, alpha=math.sqrt(1 / all_kept - 1))
            # what is cut off keeps its gradient, or else edges at the bound would never be reconsidered
            clean = clean + (clean.detach().clamp(-bound, bound) - clean.detach())
            before = chosen.kept_before[i]
            x = (x * (math.sqrt(kept) * (1 - before) / (1 - all_kept))).add(
                clean, alpha=beta * math.sqrt(before) / (1 - all_kept)
            )
        else:
            x = (x / math.sqrt(kept)).sub(error, alpha=beta / math.sqrt((1 - all_kept) * kept))
        if noise is not None and i:  # tilde beta_1 is 0
            x = x.add(noise[i - 1], alpha=chosen.spread[i] / 2)
    return x
