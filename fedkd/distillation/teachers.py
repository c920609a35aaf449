"""Many teachers on one base network: adapters on shared weights, asked row by row in one forward."""

from __future__ import annotations

from typing import Any

import torch

from fedkd.models.adapter import adapter_per_row
from fedkd.models.conditioning import Conditions, predict, take
from fedkd.training.noise import NoiseSchedule

BASE = "base"  # the network without any adapter: the teacher of what it drew itself (replay)


class Teachers:
    """Teachers by name. An adapter costs its own size alone; a whole model in `modules` costs its own.

    `table` holds lambda of EUCI Eq. 6: (1, teachers), one row for all pictures, or (N, teachers), a row
    a picture of D_C; rows sum to one.
    """

    def __init__(
        self, denoiser: Any, names: list[str], schedule: NoiseSchedule, modules: dict[str, Any] | None = None
    ) -> None:
        self.denoiser, self.names, self.schedule = denoiser, names, schedule
        self.modules = modules or {}
        self.table = torch.full((1, len(names)), 1 / len(names))

    def weights_for(self, rows: torch.Tensor) -> torch.Tensor:
        """lambda (B, teachers) for the pictures `rows` (B,)."""
        return self.table.expand(len(rows), -1) if len(self.table) == 1 else self.table[rows]

    def mean_weights(self) -> dict[str, float]:
        """Mean lambda over D_C, by teacher: what the report shows."""
        return {n: round(float(v), 4) for n, v in zip(self.names, self.table.mean(0), strict=True)}

    def raw(self, which: torch.Tensor, x_t: torch.Tensor, index: torch.Tensor, conditions: Conditions) -> torch.Tensor:
        """Raw output (B, C, h, w) of teacher `which[i]` on row i; takes part in autograd through x_t.

        Rows of adapters (and of the bare base) share one forward; whole models take their rows apart.
        """
        timesteps = self.schedule.timesteps[index].to(x_t.device)
        names = [self.names[i] for i in which.tolist()]
        whole = {name for name in names if name in self.modules}
        if not whole:
            return self._mixed(names, x_t, timesteps, conditions)
        parts: list[torch.Tensor] = []
        order: list[int] = []
        for name in [*sorted(whole), None]:
            mine = [i for i, n in enumerate(names) if (n == name if name else n not in whole)]
            if not mine:
                continue
            rows = torch.tensor(mine)
            told = x_t[rows], timesteps[rows], take(conditions, rows)
            model = self.modules.get(name or "")
            parts.append(predict(model, *told) if model else self._mixed([names[i] for i in mine], *told))
            order += mine
        return torch.cat(parts)[torch.tensor(order).argsort()]

    def shared(
        self, which: torch.Tensor, x_t: torch.Tensor, index: torch.Tensor, conditions: Conditions
    ) -> torch.Tensor:
        """Like `raw`, always one forward of the shared network: rows of whole models go through the bare base."""
        names = [self.names[i] for i in which.tolist()]
        names = [BASE if name in self.modules else name for name in names]
        return self._mixed(names, x_t, self.schedule.timesteps[index].to(x_t.device), conditions)

    def _mixed(
        self, names: list[str], x_t: torch.Tensor, timesteps: torch.Tensor, conditions: Conditions
    ) -> torch.Tensor:
        with adapter_per_row(self.denoiser, [None if name == BASE else name for name in names]):
            return predict(self.denoiser, x_t, timesteps, conditions)

    @torch.no_grad()
    def x0(
        self,
        which: torch.Tensor,
        x_t: torch.Tensor,
        index: torch.Tensor,
        conditions: Conditions,
        *,
        empty: Conditions | None = None,
        guidance_scale: float = 1.0,
    ) -> torch.Tensor:
        """sg x̂_b(x_t, t) (B, C, h, w) of teacher b = `which[i]` (B,) on row i.

        With `empty` (conditions of the empty caption, a row each) the output is guided:
        empty + guidance_scale * (caption - empty).
        """
        if empty is None or guidance_scale == 1.0:
            output = self.raw(which, x_t, index, conditions)
        else:
            both = {key: torch.cat([empty[key], conditions[key]]) for key in conditions}
            doubled = self.raw(which.repeat(2), x_t.repeat(2, 1, 1, 1), index.repeat(2), both)
            without, told = doubled.chunk(2)
            output = without + guidance_scale * (told - without)
        return self.schedule.predicted_x0(output.float(), x_t.float(), index)

    def mean_x0(
        self,
        weights: torch.Tensor,
        x_t: torch.Tensor,
        index: torch.Tensor,
        conditions: Conditions,
        *,
        empty: Conditions | None = None,
        guidance_scale: float = 1.0,
    ) -> torch.Tensor:
        """sum_b lambda_b x̂_b(x_t, t) (B, C, h, w) for `weights` (B, teachers): the weighted teachers as one."""
        total = torch.zeros_like(x_t, dtype=torch.float32)
        for rows, which, share in asked(weights):
            part = None if empty is None else take(empty, rows)
            x0 = self.x0(
                which, x_t[rows], index[rows], take(conditions, rows), empty=part, guidance_scale=guidance_scale
            )
            total[rows] += share.to(x0).view(-1, 1, 1, 1) * x0
        return total


def asked(weights: torch.Tensor) -> list[tuple[torch.Tensor, torch.Tensor, torch.Tensor]]:
    """Who is asked about which row: a list of (rows, teacher of each, lambda of each), each row at most once in one.

    Rows with one teacher of weight 1 come together in one entry, whatever their teachers: one forward.
    """
    groups = []
    left = weights.clone()
    while (left > 0).any():
        share, which = left.max(1)
        rows = (share > 0).nonzero().flatten()
        groups.append((rows, which[rows], share[rows]))
        left[rows, which[rows]] = 0
    return groups
