"""Adversarial distillation (ADD, LADD): a discriminator on the frozen base's features beside a distillation term."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn
from torch.nn import functional as F

from fedkd.distillation.discriminator import Dinov2Features, Heads, features_of
from fedkd.distillation.method import Batch, Drawing, Lesson, Method
from fedkd.distillation.samplers import lcm_scheduler
from fedkd.training.loop import Losses


class Adversarial(Method):
    """The student predicts x0 from one of a few timesteps; the discriminator sees it noised again.

    Both learn in one step: the student through the discriminator's frozen weights, the discriminator on
    the student's detached pictures.
    """

    def __init__(self, lesson: Lesson) -> None:
        super().__init__(lesson)
        config, scheduler = self.config.adversarial, self.drawing().scheduler
        self.learning_rate_factor = config.learning_rate_factor
        scheduler.set_timesteps(config.timesteps)
        self.grid = self.schedule.nearest(scheduler.timesteps).flip(0)
        x0, conditions = lesson.examples.latents[:1], lesson.examples.empty(1)
        self.dinov2 = Dinov2Features(config.dinov2, x0.device) if config.features == "dinov2" else None
        first = torch.zeros(1, dtype=torch.long)
        with torch.no_grad():
            shapes = self.features(x0, torch.zeros_like(x0), first, conditions, first)
        self.heads = Heads([feature.shape[1] for feature in shapes]).to(x0.device)

    def extra_modules(self) -> dict[str, nn.Module]:
        """The discriminator's heads."""
        return {"discriminator": self.heads}

    def features(
        self, x0: torch.Tensor, noise: torch.Tensor, index: torch.Tensor, conditions: Any, which: torch.Tensor
    ) -> list[torch.Tensor]:
        """Features [(B, F, h, w)] of clean latents x0 (B, C, h, w), with gradients to them.

        Noised again at `index` and seen by the shared network with the adapters of `which` (B,), as LADD
        has it; or decoded and seen by DINOv2, as ADD has it.
        """
        if self.dinov2:
            return self.dinov2(self.lesson.decode(x0))
        x_t = self.schedule.add_noise(x0, noise, index)
        with features_of(self.teachers.denoiser) as found:
            self.teachers.shared(which, x_t, index, conditions)
        return [feature.float() for feature in found]

    def loss(self, generator: torch.Generator) -> Losses:
        """{"loss", "adversarial", "distill", "discriminator"}: hinge losses, R1 on real features, ADD's L_distill."""
        config, batch = self.config.adversarial, self.batch(generator)
        index = self.grid[torch.randint(len(self.grid), (len(batch.x0),), generator=generator)]
        x_t = self.schedule.add_noise(batch.x0, self.noise_like(batch.x0, generator), index)
        student_x0 = self.student_x0(x_t, index, batch.conditions)
        again = self.times(len(batch.x0), generator)
        noise = self.noise_like(batch.x0, generator)
        which = batch.weights.argmax(1)
        fake = self.features(student_x0, noise, again, batch.conditions, which)
        adversarial = -self.heads(fake, frozen=True).mean()
        distill = self.distillation(batch, student_x0, noise, again)
        with torch.no_grad():
            real = self.features(batch.x0, noise, again, batch.conditions, which)
        discriminator = self.discriminator_loss(real, [feature.detach() for feature in fake])
        return {
            "loss": distill + config.weight * adversarial + discriminator,
            "adversarial": adversarial,
            "distill": distill,
            "discriminator": discriminator,
        }

    def discriminator_loss(self, real: list[torch.Tensor], fake: list[torch.Tensor]) -> torch.Tensor:
        """Hinge loss of the heads, with an R1 penalty r1/2 ‖∂D/∂features‖² on the real features (ADD, Eq. 3)."""
        r1 = self.config.adversarial.r1
        real = [feature.requires_grad_(r1 > 0) for feature in real]
        told_real, told_fake = self.heads(real), self.heads(fake)
        loss = F.relu(1 - told_real).mean() + F.relu(1 + told_fake).mean()
        if r1 > 0:
            slopes = torch.autograd.grad(told_real.sum(), real, create_graph=True)
            loss = loss + r1 / 2 * sum(slope.pow(2).flatten(1).sum(1).mean() for slope in slopes)
        return loss

    def distillation(
        self, batch: Batch, student_x0: torch.Tensor, noise: torch.Tensor, index: torch.Tensor
    ) -> torch.Tensor:
        """c(t') d(x̂_C, sg x̂_T(renoise(sg x̂_C, t'), t')) of the guided, weighted teachers."""
        x_t = self.schedule.add_noise(student_x0.detach(), noise, index)
        target = self.teacher_x0(batch, x_t, index)
        return self.discrepancy(student_x0, target, index).mean()

    def drawing(self) -> Drawing:
        """x0 predicted and noised again on the trained timesteps (LCM sampling), without guidance."""
        count = self.config.adversarial.timesteps
        return Drawing(lcm_scheduler(self.lesson.scheduler, count * -(-8 // count)), 1.0, count)
