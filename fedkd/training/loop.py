"""One training loop for every method: AdamW under accelerate, a loss that depends on the step alone."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable

import torch
from accelerate import Accelerator

Losses = dict[str, torch.Tensor]
Progress = Callable[[int, int], None]


class TrainingError(ValueError):
    """Training that went out of bounds, with what to change."""


def cosine(step: int, steps: int, warmup: int = 20) -> float:
    """Learning-rate factor in (0, 1]: linear warm-up, then half a cosine down to 5%."""
    if step < warmup:
        return (step + 1) / warmup
    return 0.05 + 0.95 * 0.5 * (1 + math.cos(math.pi * (step - warmup) / max(1, steps - warmup)))


def train(
    parameters: Iterable[torch.nn.Parameter],
    loss_of: Callable[[int], Losses],
    *,
    steps: int,
    learning_rate: float,
    first_step: int = 0,
    optimizer: torch.optim.Optimizer | None = None,
    after_step: Callable[[int], None] | None = None,
    progress: Progress | None = None,
) -> dict[str, list[float]]:
    """Minimise `loss_of(step)["loss"]` and return every named loss, thinned to at most 100 points.

    `loss_of` must draw its randomness from the step alone, which makes a resumed run equal to an
    undisturbed one. Raises TrainingError when the loss is not finite.
    """
    trained = list(parameters)
    accelerator = Accelerator(cpu=trained[0].device.type == "cpu")
    optimizer = accelerator.prepare(
        optimizer or torch.optim.AdamW(trained, lr=learning_rate, weight_decay=1e-4)
    )
    history: dict[str, list[float]] = {}
    for step in range(first_step, steps):
        for group in optimizer.param_groups:
            group["lr"] = learning_rate * cosine(step, steps)
        losses = loss_of(step)
        if not torch.isfinite(losses["loss"]):
            raise TrainingError(
                f"the loss is not finite at step {step}; lower the learning rate ({learning_rate:g})"
            )
        accelerator.backward(losses["loss"])
        accelerator.clip_grad_norm_(trained, 1.0)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        for name, value in losses.items():
            history.setdefault(name, []).append(float(value.detach()))
        if after_step:
            after_step(step)
        if progress:
            progress(step + 1, steps)
    return {name: thinned(values) for name, values in history.items()}


def thinned(values: list[float], points: int = 100) -> list[float]:
    """`values` averaged into at most `points` equal blocks, for plots and messages."""
    size = max(1, math.ceil(len(values) / points))
    blocks = (values[i : i + size] for i in range(0, len(values), size))
    return [round(sum(block) / len(block), 6) for block in blocks]


def step_generator(seed: int, step: int) -> torch.Generator:
    """A CPU generator that depends on the seed and the step alone."""
    return torch.Generator("cpu").manual_seed((seed * 1_000_003 + step) % 2**63)
