"""What every distillation method is given, and what it answers: phases, a loss, and how its student is drawn from."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch

from fedkd.distillation.losses import distance, drawn, timestep_weight
from fedkd.distillation.student import Student
from fedkd.distillation.teachers import Teachers
from fedkd.models.conditioning import Conditions
from fedkd.recipe import DistillationConfig
from fedkd.training.examples import Examples
from fedkd.training.loop import Losses
from fedkd.training.noise import NoiseSchedule


@dataclass
class Lesson:
    """A student, its teachers, and the pictures D_C they talk about."""

    config: DistillationConfig
    student: Student
    teachers: Teachers
    examples: Examples
    schedule: NoiseSchedule
    scheduler: Any  # the base's diffusers scheduler
    guidance_scale: float  # that the teachers are drawn with
    decode: Callable[[torch.Tensor], torch.Tensor]  # latents to pictures, for distances on pictures
    kept: torch.Tensor  # (K,) indices of the pictures that are trained on; the others are held out


@dataclass
class Batch:
    """`rows` (B,) of D_C, clean latents `x0` (B, C, h, w), `conditions`, and lambda `weights` (B, teachers)."""

    rows: torch.Tensor
    x0: torch.Tensor
    conditions: Conditions
    weights: torch.Tensor


@dataclass(frozen=True)
class Drawing:
    """How a student is drawn from: with which scheduler, guidance and step counts."""

    scheduler: Any
    guidance_scale: float
    num_inference_steps: int = 0  # that the student was made for; 0: as many as the base

    def sampling(self) -> dict[str, Any]:
        """{"scheduler", "num_inference_steps", "guidance_scale"} of a few-step student; empty for any other."""
        if not self.num_inference_steps:
            return {}
        return {
            "scheduler": type(self.scheduler).__name__,
            "num_inference_steps": self.num_inference_steps,
            "guidance_scale": self.guidance_scale,
        }

    def scheduler_config(self) -> dict[str, Any]:
        """The scheduler's config as plain values."""
        return {key: value for key, value in self.scheduler.config.items() if not key.startswith("_")}


class Method(ABC):
    """One way to distil. A step's randomness comes from its generator alone, so that a run can be resumed."""

    def __init__(self, lesson: Lesson) -> None:
        self.lesson, self.config, self.schedule = lesson, lesson.config, lesson.schedule
        self.student, self.teachers = lesson.student, lesson.teachers

    def phases(self) -> list[tuple[str, int]]:
        """(name, training steps) of what is done in order; the optimiser starts anew in each."""
        return [(self.config.method, self.config.steps)]

    def setup(self, phase: int) -> None:  # noqa: B027
        """Make ready for phase `phase` (0, 1, ...), before its first step."""

    def student_steps(self, phase: int) -> int | None:
        """The step count that the student of a finished phase is made for; None when it is not kept."""
        return None

    def after_step(self) -> None:  # noqa: B027
        """What has to follow the student after each optimiser step."""

    @abstractmethod
    def loss(self, generator: torch.Generator) -> Losses:
        """{"loss", ...} of one batch that `generator` draws."""

    @abstractmethod
    def drawing(self) -> Drawing:
        """How the student is to be drawn from."""

    def extra_modules(self) -> dict[str, torch.nn.Module]:
        """What learns beside the student, by name, with `learning_rate_factor` of it."""
        return {}

    learning_rate_factor: float = 1.0  # of the extra modules

    def batch(self, generator: torch.Generator, *, caption_dropout: float = 0.0) -> Batch:
        """A random batch; with `teachers=sampled` one teacher a row is drawn, b ~ lambda."""
        kept, examples = self.lesson.kept, self.lesson.examples
        rows = kept[torch.randint(len(kept), (self.config.batch_size,), generator=generator)]
        empty = torch.rand(len(rows), generator=generator) < caption_dropout
        weights = self.teachers.weights_for(rows)
        if self.config.teachers == "sampled":
            weights = drawn(weights, generator)
        return Batch(rows, examples.latents[rows], examples.told(rows, empty), weights)

    def noise_like(self, x: torch.Tensor, generator: torch.Generator) -> torch.Tensor:
        """Gaussian noise of x's shape, drawn on the CPU so that it does not depend on the device."""
        return torch.randn(x.shape, generator=generator).to(x)

    def times(self, count: int, generator: torch.Generator) -> torch.Tensor:
        """Uniform training-timestep indices (count,)."""
        return torch.randint(len(self.schedule), (count,), generator=generator)

    def student_x0(self, x_t: torch.Tensor, index: torch.Tensor, conditions: Conditions) -> torch.Tensor:
        """x̂_C(x_t, t) (B, C, h, w) in float32, with gradients."""
        output = self.student.predict(x_t, self.schedule.timesteps[index].to(x_t.device), conditions)
        return self.schedule.predicted_x0(output.float(), x_t.float(), index)

    def previous_x0(self, x_t: torch.Tensor, index: torch.Tensor, conditions: Conditions) -> torch.Tensor:
        """x̂(x_t, t) (B, C, h, w) of the student's remembered self, without gradient."""
        output = self.student.previous(x_t, self.schedule.timesteps[index].to(x_t.device), conditions)
        return self.schedule.predicted_x0(output.float(), x_t.float(), index)

    def discrepancy(self, x0: torch.Tensor, target: torch.Tensor, index: torch.Tensor) -> torch.Tensor:
        """c(t) d(x0, target) (B,) of EUCI Eq. 6, with the recipe's weighting and distance."""
        config = self.config
        c = timestep_weight(self.schedule.snr(index), config.weighting, config.min_snr_k)
        return c * distance(x0, target, config.distance, huber_delta=config.huber_delta, decode=self.lesson.decode)

    def teacher_x0(self, batch: Batch, x_t: torch.Tensor, index: torch.Tensor) -> torch.Tensor:
        """The weighted teachers' guided x̂ (B, C, h, w), without gradient."""
        return self.teachers.mean_x0(
            batch.weights,
            x_t,
            index,
            batch.conditions,
            empty=self.lesson.examples.empty(len(x_t)),
            guidance_scale=self.lesson.guidance_scale,
        )

    def state(self) -> dict[str, torch.Tensor]:
        """Everything that learns or is remembered, by name: what a resumed run starts from."""
        extra = {f"{n}.{k}": t for n, m in self.extra_modules().items() for k, t in m.state_dict().items()}
        return self.student.state() | extra

    def load_state(self, tensors: dict[str, torch.Tensor]) -> None:
        """Put a saved state back."""
        self.student.load_state(tensors)
        for name, module in self.extra_modules().items():
            prefix = f"{name}."
            module.load_state_dict({k.removeprefix(prefix): t for k, t in tensors.items() if k.startswith(prefix)})
