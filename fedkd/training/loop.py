"""One training loop for every method: AdamW under accelerate, a loss that depends on the draw's number alone."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Sequence

import torch
from accelerate import Accelerator
from accelerate.state import AcceleratorState, PartialState

Losses = dict[str, torch.Tensor]
Progress = Callable[[int, int], None]


class TrainingError(ValueError):
    """Training that went out of bounds, with what to change."""


def cosine(step: int, steps: int, warmup: int = 20) -> float:
    """Learning-rate factor in (0, 1]: linear warm-up, then half a cosine down to 5%."""
    if step < warmup:
        return (step + 1) / warmup
    return 0.05 + 0.95 * 0.5 * (1 + math.cos(math.pi * (step - warmup) / max(1, steps - warmup)))


def accelerator_for(device: torch.device, mixed_precision: str = "no") -> Accelerator:
    """An Accelerator on `device`'s kind; TrainingError where the machine lacks the precision asked for."""
    if mixed_precision == "fp16" and device.type == "cpu":
        raise TrainingError("distillation.mixed_precision=fp16 needs a GPU; use bf16 or no with run.device=cpu")
    state = AcceleratorState._shared_state
    if state and state.get("_mixed_precision") != mixed_precision:
        AcceleratorState._reset_state()  # one process may run several recipes
    return Accelerator(cpu=device.type == "cpu", mixed_precision=mixed_precision)


def is_main_process() -> bool:
    """Whether this is the process that writes and prints: the only one, or the first of several."""
    return not PartialState._shared_state or bool(PartialState().is_main_process)


def new_optimizer(
    trained: Sequence[torch.nn.Parameter],
    learning_rate: float,
    extra: Sequence[torch.nn.Parameter] = (),
    extra_factor: float = 1.0,
) -> torch.optim.Optimizer:
    """AdamW over one group or two; a group's `factor` scales the learning rate."""
    groups = [{"params": list(trained), "factor": 1.0}]
    if extra:
        groups.append({"params": list(extra), "factor": extra_factor})
    return torch.optim.AdamW(groups, lr=learning_rate, weight_decay=1e-4)


def train(
    parameters: Iterable[torch.nn.Parameter],
    loss_of: Callable[[int], Losses],
    *,
    steps: int,
    learning_rate: float,
    first_step: int = 0,
    optimizer: torch.optim.Optimizer | None = None,
    after_step: Callable[[int, dict[str, float]], None] | None = None,
    progress: Progress | None = None,
    gradient_accumulation_steps: int = 1,
    mixed_precision: str = "no",
) -> dict[str, list[float]]:
    """Minimise `loss_of(draw)["loss"]` and return every named loss, thinned to at most 100 points.

    A step averages the gradients of `gradient_accumulation_steps` draws in each process; draws are
    numbered through steps and processes, and `loss_of` must take its randomness from the number alone,
    which makes a resumed run equal to an undisturbed one. Raises TrainingError when the loss is not finite.
    """
    trained = list(parameters)
    optimizer = optimizer or new_optimizer(trained, learning_rate)
    accelerator = accelerator_for(trained[0].device, mixed_precision)
    prepared = accelerator.prepare(optimizer)
    history: dict[str, list[float]] = {}
    for step in range(first_step, steps):
        for group in optimizer.param_groups:
            group["lr"] = learning_rate * cosine(step, steps) * group.get("factor", 1.0)
        shown: dict[str, float] = {}
        for part in range(gradient_accumulation_steps):
            place = step * gradient_accumulation_steps + part
            draw = place * accelerator.num_processes + accelerator.process_index
            with accelerator.autocast():
                losses = loss_of(draw)
            if not torch.isfinite(losses["loss"]):
                raise TrainingError(
                    f"the loss is not finite at step {step}; lower the learning rate ({learning_rate:g})"
                )
            accelerator.backward(losses["loss"] / gradient_accumulation_steps)
            for name, value in losses.items():
                shown[name] = shown.get(name, 0.0) + float(value.detach()) / gradient_accumulation_steps
        _average_over_processes(accelerator, optimizer)
        accelerator.unscale_gradients()  # once a step; accelerate's own clipping would do it once a group
        for group in optimizer.param_groups:
            torch.nn.utils.clip_grad_norm_(group["params"], 1.0)
        prepared.step()
        prepared.zero_grad(set_to_none=True)
        for name, number in shown.items():
            history.setdefault(name, []).append(number)
        if after_step:
            after_step(step, shown)
        if progress:
            progress(step + 1, steps)
    return {name: thinned(values) for name, values in history.items()}


def _average_over_processes(accelerator: Accelerator, optimizer: torch.optim.Optimizer) -> None:
    """What DDP would do; a network with several adapters has weights outside of every step, which DDP refuses."""
    if accelerator.num_processes == 1:
        return
    for group in optimizer.param_groups:
        for parameter in group["params"]:
            gradient = parameter.grad if parameter.grad is not None else torch.zeros_like(parameter)
            parameter.grad = accelerator.reduce(gradient, "mean")


def thinned(values: list[float], points: int = 100) -> list[float]:
    """`values` averaged into at most `points` equal blocks, for plots and messages."""
    size = max(1, math.ceil(len(values) / points))
    blocks = (values[i : i + size] for i in range(0, len(values), size))
    return [round(sum(block) / len(block), 6) for block in blocks]


def step_generator(seed: int, step: int) -> torch.Generator:
    """A CPU generator that depends on the seed and the step alone."""
    return torch.Generator("cpu").manual_seed((seed * 1_000_003 + step) % 2**63)
