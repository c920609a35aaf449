"""The forward process and what a model's output means: x_t = alpha x0 + sigma eps, for every scheduler family."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from diffusers import SchedulerMixin


@dataclass(frozen=True)
class NoiseSchedule:
    """`alpha`, `sigma`: (T,) over training timesteps 0..T-1; `prediction`: epsilon | v_prediction | sample | flow."""

    alpha: torch.Tensor
    sigma: torch.Tensor
    timesteps: torch.Tensor
    prediction: str

    @classmethod
    def of(cls, scheduler: SchedulerMixin) -> NoiseSchedule:
        """The training schedule behind any diffusers scheduler (flow matching included)."""
        betas = getattr(scheduler, "alphas_cumprod", None)
        if betas is None:
            sigma = scheduler.sigmas.clone().float().flip(0)
            sigma = sigma[sigma > 0]
            return cls(1 - sigma, sigma, sigma * scheduler.config.num_train_timesteps, "flow")
        cumprod = betas.clone().float()
        steps = torch.arange(len(cumprod))
        return cls(cumprod.sqrt(), (1 - cumprod).sqrt(), steps, scheduler.config.prediction_type)

    def __len__(self) -> int:
        return len(self.alpha)

    def at(self, index: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """(alpha, sigma) at `index` (B,), each (B, 1, 1, 1)."""
        return self.alpha[index].view(-1, 1, 1, 1), self.sigma[index].view(-1, 1, 1, 1)

    def add_noise(self, x0: torch.Tensor, noise: torch.Tensor, index: torch.Tensor) -> torch.Tensor:
        """x_t for clean latents `x0` (B, C, h, w) at `index` (B,)."""
        alpha, sigma = self.at(index)
        return alpha * x0 + sigma * noise

    def target(self, x0: torch.Tensor, noise: torch.Tensor, index: torch.Tensor) -> torch.Tensor:
        """What the model should output: eps, v, x0 or the flow, by its prediction type."""
        alpha, sigma = self.at(index)
        match self.prediction:
            case "epsilon":
                return noise
            case "v_prediction":
                return alpha * noise - sigma * x0
            case "sample":
                return x0
            case _:
                return noise - x0

    def predicted_x0(self, output: torch.Tensor, x_t: torch.Tensor, index: torch.Tensor) -> torch.Tensor:
        """x̂_θ(x_t, t): the clean latents that a model output stands for."""
        alpha, sigma = self.at(index)
        match self.prediction:
            case "epsilon":
                return (x_t - sigma * output) / alpha.clamp(min=1e-4)
            case "v_prediction":
                return alpha * x_t - sigma * output
            case "sample":
                return output
            case _:
                return x_t - sigma * output

    def snr(self, index: torch.Tensor) -> torch.Tensor:
        """(alpha/sigma)^2 at `index` (B,)."""
        return (self.alpha[index] / self.sigma[index]) ** 2
