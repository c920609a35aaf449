"""Soft actor-critic over a finite set of edges: the losses of LAD-TS (Eqs. 14-16), for a stack of agents."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import torch


def entropy(logits: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """(pi (G, K, A), H(pi) (G, K)) of the softmax of x_0 (G, K, A)."""
    log = logits.log_softmax(-1)
    chance = log.exp()
    return chance, -(chance * log).sum(-1)


def target(
    reward: torch.Tensor, logits: torch.Tensor, values: torch.Tensor, temperature: torch.Tensor, discount: float
) -> torch.Tensor:
    """Q_target (G, K) = r + gamma (pi(s')^T min_j Q_j(s') + alpha H(pi(s'))); `values` (2, G, K, A), alpha (G, 1)."""
    chance, uncertain = entropy(logits)
    return reward + discount * ((chance * values.amin(0)).sum(-1) + temperature * uncertain)


def critic_loss(values: torch.Tensor, action: torch.Tensor, wanted: torch.Tensor) -> torch.Tensor:
    """Eq. 14 summed over agents and both critics: `values` (2, G, K, A), `action` (G, K), `wanted` (G, K)."""
    taken = values.gather(-1, action.expand(values.shape[0], *action.shape)[..., None])[..., 0]
    return ((taken - wanted) ** 2).mean(-1).sum()


def actor_loss(
    logits: torch.Tensor, values: torch.Tensor, temperature: torch.Tensor, squared: bool = True
) -> tuple[torch.Tensor, torch.Tensor]:
    """(Eq. 15 summed over agents, H(pi) (G, K)); `squared=False` is SAC's own loss, without the square."""
    chance, uncertain = entropy(logits)
    each = -temperature * uncertain - (chance * values.amin(0)).sum(-1)
    return (each**2 if squared else each).mean(-1).sum(), uncertain


def temperature_loss(
    log_temperature: torch.Tensor, uncertain: torch.Tensor, wanted: float, as_printed: bool = False
) -> torch.Tensor:
    """Eq. 16 over log alpha (G, 1): alpha falls while the entropy is above the wanted one.

    Printed is (-H - H~) alpha, which raises alpha the more random the policy already is; with H the log probability,
    as the text before Eq. 14 has it, it is SAC's loss, (H - H~) alpha. `as_printed` takes the first reading.
    """
    surplus = (-uncertain - wanted) if as_printed else (uncertain - wanted)
    return (surplus.detach().mean(-1, keepdim=True) * log_temperature.exp()).sum()
