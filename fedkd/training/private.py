"""Differentially private fine-tuning (DP-SGD, Abadi et al. 2016) through Opacus: no picture moves an adapter by much.

What is protected is one row of the data that is trained on: a synthetic picture at an edge, a private picture where a
user trains the adapter it draws with. Noise and batches come from the system's entropy and not from the run's seed,
since whoever knows a seed could take the noise away again; so a private run cannot be repeated bit for bit.
"""

from __future__ import annotations

import importlib.util
import secrets
import warnings
from collections.abc import Callable, Iterable
from dataclasses import asdict, dataclass
from functools import lru_cache

import torch
from torch import nn

from fedkd.recipe import DPConfig
from fedkd.training.loop import Progress, TrainingError, cosine, new_optimizer, thinned

LossOf = Callable[[torch.Tensor, torch.Generator], torch.Tensor]
# A layer of frozen inputs still gets the gradient of its output, which is all that Opacus' hooks need.
warnings.filterwarnings("ignore", message="Full backward hook is firing", module=__name__)


@dataclass(frozen=True)
class Spent:
    """What a training costs: `epsilon` at `delta`, with noise of `noise_multiplier` times the clipping norm."""

    epsilon: float
    delta: float
    noise_multiplier: float

    def facts(self) -> dict[str, float]:
        """As a report and a manifest hold it."""
        return asdict(self)


def need_opacus(config: DPConfig) -> None:
    """TrainingError when privacy is asked for and Opacus is not there."""
    if config.epsilon > 0 and importlib.util.find_spec("opacus") is None:
        raise TrainingError(
            f"finetune.dp.epsilon={config.epsilon:g} needs Opacus; install it with pip install 'fedkd[dp]', or set 0"
        )


def spent_by(config: DPConfig, *, rows: int, batch_size: int, steps: int) -> Spent | None:
    """The privacy that `steps` Poisson-sampled steps on `rows` pictures cost; None when none is asked for.

    The least noise that keeps to `config.epsilon`, by Opacus' RDP accountant.
    """
    if config.epsilon <= 0:
        return None
    need_opacus(config)
    return _spent(config.epsilon, config.delta, sample_rate(rows, batch_size), steps)


@lru_cache
def _spent(epsilon: float, delta: float, rate: float, steps: int) -> Spent:
    from opacus.accountants import RDPAccountant
    from opacus.accountants.utils import get_noise_multiplier

    noise = get_noise_multiplier(
        target_epsilon=epsilon, target_delta=delta, sample_rate=rate, steps=steps, accountant="rdp"
    )
    accountant = RDPAccountant()
    accountant.history = [(noise, rate, steps)]
    return Spent(float(accountant.get_epsilon(delta)), delta, float(noise))


def sample_rate(rows: int, batch_size: int) -> float:
    """The chance with which a picture is in a batch."""
    return min(1.0, batch_size / rows)


def train_privately(
    module: nn.Module,
    parameters: Iterable[nn.Parameter],
    loss_of: LossOf,
    *,
    rows: int,
    batch_size: int,
    steps: int,
    learning_rate: float,
    noise_multiplier: float,
    max_grad_norm: float,
    generator: torch.Generator | None = None,
    progress: Progress | None = None,
) -> dict[str, list[float]]:
    """DP-SGD on the trained `parameters` of `module`: per-picture gradients, clipped, summed, with noise.

    `loss_of(rows, generator)` is the mean loss of the pictures `rows` (B,), in which pictures do not mix. Batches are
    Poisson-sampled. Returns {"loss": [...]}; `generator` is for tests alone. TrainingError when the loss is not finite.
    """
    from opacus import GradSampleModule
    from opacus.optimizers import DPOptimizer

    own = generator or torch.Generator("cpu").manual_seed(secrets.randbits(63))
    trained = list(parameters)
    noise = torch.Generator(trained[0].device).manual_seed(int(torch.randint(2**62, (), generator=own)))
    rate = sample_rate(rows, batch_size)
    optimizer = DPOptimizer(
        new_optimizer(trained, learning_rate),
        noise_multiplier=noise_multiplier,
        max_grad_norm=max_grad_norm,
        expected_batch_size=max(1, round(rate * rows)),
        generator=noise,
    )
    watched = GradSampleModule(module, strict=False)  # its hooks see each picture's gradient
    losses: list[float] = []
    try:
        for step in range(steps):
            for group in optimizer.param_groups:
                group["lr"] = learning_rate * cosine(step, steps)
            chosen = torch.nonzero(torch.rand(rows, generator=own) < rate).flatten()
            empty = not len(chosen)
            loss = loss_of(torch.zeros(1, dtype=torch.long) if empty else chosen, own)
            if not torch.isfinite(loss):
                raise TrainingError(
                    f"the loss is not finite at step {step}; lower the learning rate ({learning_rate:g})"
                )
            (loss * 0 if empty else loss).backward()  # an empty batch still gets its noise
            optimizer.step()
            optimizer.zero_grad(set_to_none=True)
            losses.append(float(loss.detach()))
            if progress:
                progress(step + 1, steps)
    finally:
        watched.to_standard_module()
    return {"loss": thinned(losses)}
