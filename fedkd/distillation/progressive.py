"""Progressive distillation (Salimans and Ho 2022): the student does in one DDIM step what its teacher does in two."""

from __future__ import annotations

import torch

from fedkd.distillation.method import Batch, Drawing, Lesson, Method
from fedkd.distillation.samplers import few_step_ddim
from fedkd.training.loop import Losses


class Progressive(Method):
    """Guidance first, where it is used; then start_steps/2, start_steps/4, ..., end_steps.

    The first halving has the weighted edges as its teacher. After that it is the student of the phase
    before (`teacher=previous`), or the edges again, who then take all of their own DDIM steps that lie
    within one of the student's (`teacher=edges`).
    """

    def __init__(self, lesson: Lesson) -> None:
        super().__init__(lesson)
        halving, self.counts = self.config.progressive, [0]
        if lesson.guidance_scale == 1.0:
            self.counts = []
        steps = halving.start_steps
        while steps > halving.end_steps:
            steps //= 2
            self.counts.append(steps)
        self.phase = 0
        self.own = torch.zeros(0)

    def phases(self) -> list[tuple[str, int]]:
        """Equal shares of distillation.steps; the last phases, which are the hardest, get what is left over."""
        each, rest = divmod(self.config.steps, len(self.counts))
        names = [f"{count} step{'s' * (count > 1)}" if count else "guidance" for count in self.counts]
        return [(name, each + (rest if name == names[-1] else 0)) for name in names]

    def setup(self, phase: int) -> None:
        """Remember the student as the next teacher, and lay out the student's own timesteps."""
        self.phase = phase
        if self.from_student:
            self.student.remember()
        if self.steps:
            self.own = self.grid(self.steps)

    def student_steps(self, phase: int) -> int | None:
        """Every halving's student is kept: it is the best at its own number of steps."""
        return self.counts[phase] or None

    @property
    def steps(self) -> int:
        """The student's steps in this phase; 0 while guidance is learned."""
        return self.counts[self.phase]

    @property
    def from_student(self) -> bool:
        """Whether the teacher of this phase is the student of the one before."""
        return self.phase > 0 and self.config.progressive.teacher == "previous"

    def grid(self, steps: int) -> torch.Tensor:
        """Training-timestep indices (steps + 1,) that a sampler of `steps` steps visits, ending in -1."""
        scheduler = few_step_ddim(self.lesson.scheduler)
        scheduler.set_timesteps(steps)
        places = self.schedule.nearest(scheduler.timesteps)
        return torch.cat([places, torch.tensor([-1])])

    def loss(self, generator: torch.Generator) -> Losses:
        """{"loss"}: c(t) d(x̂_C(x_t), x̃), where x̃ is the x0 whose one step equals the teacher's steps."""
        batch = self.batch(generator)
        if not self.steps:
            index = self.times(len(batch.x0), generator)
            x_t = self.schedule.add_noise(batch.x0, self.noise_like(batch.x0, generator), index)
            target = self.teacher_x0(batch, x_t, index)
        else:
            place = torch.randint(self.steps, (len(batch.x0),), generator=generator)
            index, to = self.own[place], self.own[place + 1]
            x_t = self.schedule.add_noise(batch.x0, self.noise_like(batch.x0, generator), index)
            target = self.teacher_target(batch, x_t, index, to)
        return {"loss": self.discrepancy(self.student_x0(x_t, index, batch.conditions), target, index).mean()}

    @torch.no_grad()
    def teacher_target(self, batch: Batch, x_t: torch.Tensor, index: torch.Tensor, to: torch.Tensor) -> torch.Tensor:
        """x̃ (B, C, h, w): the teacher goes from `index` to `to` in equal DDIM steps, and the result is inverted."""
        count = 2 if self.from_student else self.config.progressive.start_steps // self.steps
        x, at = x_t.float(), index
        for step in range(count):
            share = (step + 1) / count
            # Index -1 stands for the end of sampling, half a step past index 0.
            between = (index + (to - index) * share).round().long()
            following = to if step == count - 1 else between
            x = self.schedule.step(self._teacher_x0(batch, x, at), x, at, following)
            at = following
        return self.schedule.x0_of_step(x, x_t.float(), index, to)

    def _teacher_x0(self, batch: Batch, x: torch.Tensor, index: torch.Tensor) -> torch.Tensor:
        return self.previous_x0(x, index, batch.conditions) if self.from_student else self.teacher_x0(batch, x, index)

    def drawing(self) -> Drawing:
        """DDIM on the very grid of the last phase, without guidance: it was learned."""
        return Drawing(few_step_ddim(self.lesson.scheduler), 1.0, self.config.progressive.end_steps)
