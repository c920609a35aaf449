"""Latent consistency distillation (LCM): neighbouring points of the teacher's trajectory lead to one x0."""

from __future__ import annotations

import torch

from fedkd.distillation.method import Drawing, Lesson, Method
from fedkd.distillation.samplers import lcm_scheduler
from fedkd.models.conditioning import Conditions
from fedkd.training.loop import Losses

FEW = 4  # steps at which a consistency student is drawn unless it is asked otherwise


class Consistency(Method):
    """f(x_t, t) = c_skip x_t + c_out x̂(x_t, t) is to be the same at t and at the solver's next point."""

    def __init__(self, lesson: Lesson) -> None:
        super().__init__(lesson)
        solver, total = self.config.consistency.solver_steps, len(self.schedule)
        self.grid = torch.cat([torch.tensor([-1]), torch.arange(1, solver + 1) * (total // solver) - 1])

    def boundary(self, index: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """(c_skip, c_out) at `index` (B,), each (B, 1, 1, 1); (1, 0) at the end of sampling (LCM, Eq. 9)."""
        config = self.config.consistency
        timesteps = torch.where(index < 0, 0.0, self.schedule.timesteps[index].float().cpu())
        scaled = timesteps * config.timestep_scaling
        skip = config.sigma_data**2 / (scaled**2 + config.sigma_data**2)
        out = scaled / (scaled**2 + config.sigma_data**2) ** 0.5
        device = self.schedule.alpha.device
        return skip.view(-1, 1, 1, 1).to(device), out.view(-1, 1, 1, 1).to(device)

    def setup(self, phase: int) -> None:
        """The target network starts as the student."""
        if self.config.consistency.target_decay:
            self.student.remember()

    def after_step(self) -> None:
        """The target network follows the student."""
        if self.config.consistency.target_decay:
            self.student.move_previous(self.config.consistency.target_decay)

    def consistent(
        self, x_t: torch.Tensor, index: torch.Tensor, conditions: Conditions, *, target: bool = False
    ) -> torch.Tensor:
        """f(x_t, t) (B, C, h, w) of the student, or of the target network."""
        skip, out = self.boundary(index)
        # At the end of sampling c_out is 0 and the network's answer does not count; index 0 fills the row.
        asked = index.clamp(min=0)
        averaged = target and self.config.consistency.target_decay
        x0 = (self.previous_x0 if averaged else self.student_x0)(x_t, asked, conditions)
        return skip * x_t.float() + out * x0

    def loss(self, generator: torch.Generator) -> Losses:
        """{"loss"}: pseudo-Huber distance between f at t and sg f at the guided teacher's next point."""
        batch = self.batch(generator)
        place = torch.randint(1, len(self.grid), (len(batch.x0),), generator=generator)
        index, to = self.grid[place], self.grid[place - 1]
        x_t = self.schedule.add_noise(batch.x0, self.noise_like(batch.x0, generator), index).float()
        with torch.no_grad():
            following = self.schedule.step(self.teacher_x0(batch, x_t, index), x_t, index, to)
            target = self.consistent(following, to, batch.conditions, target=True)
        gap = self.consistent(x_t, index, batch.conditions) - target
        c = self.config.consistency.huber_c
        return {"loss": ((gap**2 + c**2).sqrt() - c).mean()}

    def drawing(self) -> Drawing:
        """LCM sampling without guidance: it was folded into the teacher's solver.

        A solver of fewer than eight points can still be drawn at eight steps, half of them between its own.
        """
        return Drawing(lcm_scheduler(self.lesson.scheduler, max(8, self.config.consistency.solver_steps)), 1.0, FEW)
