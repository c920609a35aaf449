"""Many small networks of one shape as one: parameters with a leading axis of networks, one batched product a layer."""

from __future__ import annotations

import math
from itertools import pairwise
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import torch

    Weights = list[torch.Tensor]


def layers(sizes: tuple[int, ...], networks: int, generator: torch.Generator) -> Weights:
    """[W (G, in, out), b (G, 1, out), ...] of G perceptrons, each drawn as torch.nn.Linear draws one."""
    import torch

    found = []
    for inside, outside in pairwise(sizes):
        bound = 1 / math.sqrt(inside)
        for rows in (inside, 1):
            drawn = torch.rand(networks, rows, outside, generator=generator)
            found.append(((2 * drawn - 1) * bound).requires_grad_())
    return found


def forward(weights: Weights, inputs: torch.Tensor) -> torch.Tensor:
    """(G, K, out) of inputs (G, K, in), ReLU between layers."""
    import torch

    for place in range(0, len(weights), 2):
        inputs = torch.baddbmm(weights[place + 1], inputs, weights[place])
        if place < len(weights) - 2:
            inputs = inputs.relu()
    return inputs


def follow(targets: Weights, sources: Weights, rate: float) -> None:
    """Eq. 17: targets move towards sources by `rate`."""
    import torch

    with torch.no_grad():
        torch._foreach_lerp_(targets, [each.detach() for each in sources], rate)
