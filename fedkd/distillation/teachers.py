"""The edges' adapters as teachers on one base network, and how far each is trusted: lambda of EUCI Eq. 6."""

from __future__ import annotations

from typing import Any

import torch
from torch.nn import functional as F

from fedkd.distillation.losses import normalised
from fedkd.models.conditioning import Conditions, predict, take
from fedkd.recipe import DistillationConfig
from fedkd.training.examples import Examples
from fedkd.training.noise import NoiseSchedule

BASE = "base"  # the network without any adapter: the teacher of what it drew itself (replay)
PROBES = 4  # noise levels at which a teacher's error on a picture is measured


class Teachers:
    """Teachers by name on `denoiser`; asks one at a time, so memory holds one network and small adapters."""

    def __init__(self, denoiser: Any, names: list[str], schedule: NoiseSchedule) -> None:
        self.denoiser, self.names, self.schedule = denoiser, names, schedule
        self.edges = [name for name in names if name != BASE]
        self.table = torch.zeros(0)

    @torch.no_grad()
    def output(self, teacher: int, x_t: torch.Tensor, index: torch.Tensor, conditions: Conditions) -> torch.Tensor:
        """The teacher's raw output (B, C, h, w), without gradient."""
        name = self.names[teacher]
        timesteps = self.schedule.timesteps[index].to(x_t.device)
        if name != BASE:
            self.denoiser.set_adapter(name)
            return predict(self.denoiser, x_t, timesteps, conditions)
        self.denoiser.disable_adapters()
        try:
            return predict(self.denoiser, x_t, timesteps, conditions)
        finally:
            self.denoiser.enable_adapters()

    def predicted_x0(
        self, teacher: int, x_t: torch.Tensor, index: torch.Tensor, conditions: Conditions, rows: torch.Tensor
    ) -> torch.Tensor:
        """sg x̂_b(x_t, t) for the rows asked; `conditions` are of the whole batch."""
        output = self.output(teacher, x_t, index, take(conditions, rows))
        return self.schedule.predicted_x0(output, x_t, index).detach()

    def set_weights(
        self,
        config: DistillationConfig,
        examples: Examples,
        source: torch.Tensor,
        *,
        sizes: list[int],
        seed: int,
    ) -> None:
        """Fix lambda as a table: one row for all (uniform, size, validation), a source, or a picture.

        The global kinds trust edges alone, as the paper has it. `provenance` asks each teacher about
        its own pictures, and the base about the replay. `confidence` weighs teachers on each picture by
        how well they predict it.
        """
        count, edges = len(self.names), len(self.edges)
        row = torch.zeros(1, count)
        match config.teacher_weights:
            case "uniform":
                row[0, :edges] = 1.0
                self.table = normalised(row)
            case "size":
                row[0, :edges] = torch.tensor(sizes, dtype=torch.float)
                self.table = normalised(row)
            case "validation":
                errors = self.errors(examples, seed).mean(0)[:edges]
                row[0, :edges] = 1 / errors.clamp(min=1e-8)
                self.table = normalised(row)
            case "provenance":
                self.table = torch.eye(count)
            case "confidence":
                errors = self.errors(examples, seed)
                self.table = torch.softmax(-errors / errors.std().clamp(min=1e-8), dim=1)
            case other:
                raise ValueError(f"distillation.teacher_weights={other!r} is not known")
        self.per = "picture" if len(self.table) == len(source) and len(self.table) > count else "source"
        self.per = "all" if len(self.table) == 1 else self.per

    def weights_for(self, rows: torch.Tensor, source: torch.Tensor) -> torch.Tensor:
        """lambda (B, teachers) for the pictures `rows` (B,), each row summing to one."""
        if self.per == "all":
            return self.table.expand(len(rows), -1)
        return self.table[rows] if self.per == "picture" else self.table[source[rows]]

    def mean_weights(self, source: torch.Tensor) -> dict[str, float]:
        """Mean lambda over D_C, by teacher: what the report shows."""
        mean = self.weights_for(torch.arange(len(source)), source).mean(0)
        return {name: round(float(value), 4) for name, value in zip(self.names, mean, strict=True)}

    def errors(self, examples: Examples, seed: int, batch: int = 128) -> torch.Tensor:
        """(N, teachers) squared output error of each teacher on each picture, at the same noise."""
        rows = []
        for start in range(0, len(examples), batch):
            x0 = examples.latents[start : start + batch]
            conditions = take(examples.conditions, examples.caption[start : start + batch])
            total = torch.zeros(len(x0), len(self.names))
            for probe in range(PROBES):
                generator = torch.Generator("cpu").manual_seed(seed + probe)
                index = torch.full((len(x0),), (2 * probe + 1) * len(self.schedule) // (2 * PROBES))
                noise = torch.randn(x0.shape, generator=generator).to(x0)
                x_t = self.schedule.add_noise(x0, noise, index)
                target = self.schedule.target(x0, noise, index)
                for teacher in range(len(self.names)):
                    output = self.output(teacher, x_t, index, conditions)
                    error = F.mse_loss(output, target, reduction="none").flatten(1).mean(1)
                    total[:, teacher] += error.float().cpu() / PROBES
            rows.append(total)
        return torch.cat(rows)
