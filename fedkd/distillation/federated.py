"""The paper's student: L = (1-gamma) L_task + gamma L_distill with one term a teacher (EUCI Eqs. 5-7)."""

from __future__ import annotations

import torch
from torch.nn import functional as F

from fedkd.distillation.losses import total_loss
from fedkd.distillation.method import Batch, Drawing, Method
from fedkd.distillation.teachers import asked
from fedkd.models.conditioning import take
from fedkd.training.loop import Losses


class Federated(Method):
    """A student with the base's own number of steps, for the next round and for serving."""

    def drawing(self) -> Drawing:
        """As the base is drawn from."""
        return Drawing(self.lesson.scheduler, self.lesson.guidance_scale)

    def loss(self, generator: torch.Generator) -> Losses:
        """{"loss", "task", "distill"} of one batch: EUCI Eqs. 7, 5 and 6."""
        batch = self.batch(generator, caption_dropout=self.config.caption_dropout)
        index = self.times(len(batch.x0), generator)
        noise = self.noise_like(batch.x0, generator)
        x_t = self.schedule.add_noise(batch.x0, noise, index)
        output = self.student.predict(x_t, self.schedule.timesteps[index].to(x_t.device), batch.conditions)
        task = F.mse_loss(output.float(), self.schedule.target(batch.x0, noise, index).float())
        distill = torch.zeros_like(task)
        if self.config.gamma > 0:
            student_x0 = self.schedule.predicted_x0(output.float(), x_t.float(), index)
            distill = self.distillation(batch, student_x0, x_t, index, generator)
        return {"loss": total_loss(task, distill, self.config.gamma), "task": task, "distill": distill}

    def distillation(
        self,
        batch: Batch,
        student_x0: torch.Tensor,
        x_t: torch.Tensor,
        index: torch.Tensor,
        generator: torch.Generator,
    ) -> torch.Tensor:
        """sum_b lambda_b E[c(t') d(x̂_C, sg x̂_b)] (EUCI Eq. 6) as a scalar.

        `same`: the teacher sees the student's own x_t. `renoise`: it sees the student's prediction, noised
        again at a fresh t' (adversarial diffusion distillation's form).
        """
        if self.config.form == "renoise":
            index = self.times(len(x_t), generator)
            x_t = self.schedule.add_noise(student_x0.detach(), self.noise_like(student_x0, generator), index)
        total = student_x0.new_zeros(())
        for rows, which, share in asked(batch.weights):
            target = self.teachers.x0(which, x_t[rows], index[rows], take(batch.conditions, rows))
            apart = self.discrepancy(student_x0[rows], target, index[rows])
            total = total + (share.to(apart) * apart).sum() / len(x_t)
        return total
