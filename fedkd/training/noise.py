"""The forward process and what a model's output means: x_t = alpha x0 + sigma eps, for every scheduler family."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from diffusers import FlowMatchEulerDiscreteScheduler, SchedulerMixin


@dataclass(frozen=True)
class NoiseSchedule:
    """`alpha`, `sigma`: (T,) over training timesteps 0..T-1; `prediction`: epsilon | v_prediction | sample | flow."""

    alpha: torch.Tensor
    sigma: torch.Tensor
    timesteps: torch.Tensor
    prediction: str
    final: tuple[float, float] = (1.0, 0.0)  # (alpha, sigma) after a sampler's last step

    @classmethod
    def of(cls, scheduler: SchedulerMixin, device: torch.device | str = "cpu") -> NoiseSchedule:
        """The training schedule behind any diffusers scheduler (flow matching included), on `device`."""
        if scheduler.config.get("use_flow_sigmas"):  # a general solver told to do flow matching
            steps = scheduler.config.num_train_timesteps
            scheduler = FlowMatchEulerDiscreteScheduler(steps, shift=scheduler.config.flow_shift)
        betas = getattr(scheduler, "alphas_cumprod", None)
        if betas is None:
            # A scheduler that has drawn pictures holds the levels of that drawing; its config, those of training.
            sigma = type(scheduler).from_config(scheduler.config).sigmas.clone().float().flip(0)
            sigma = sigma[sigma > 0].to(device)
            return cls(1 - sigma, sigma, sigma * scheduler.config.num_train_timesteps, "flow")
        cumprod = betas.clone().float().to(device)
        steps, alpha, sigma = torch.arange(len(cumprod), device=device), cumprod.sqrt(), (1 - cumprod).sqrt()
        stays_noisy = scheduler.config.get("set_alpha_to_one") is False
        final = (float(alpha[0]), float(sigma[0])) if stays_noisy else (1.0, 0.0)
        return cls(alpha, sigma, steps, scheduler.config.prediction_type, final)

    def __len__(self) -> int:
        return len(self.alpha)

    def at(self, index: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """(alpha, sigma) at `index` (B,), each (B, 1, 1, 1); index -1 is the end of sampling."""
        last = index < 0
        alpha = torch.where(last.to(self.alpha.device), self.final[0], self.alpha[index])
        sigma = torch.where(last.to(self.alpha.device), self.final[1], self.sigma[index])
        return alpha.view(-1, 1, 1, 1), sigma.view(-1, 1, 1, 1)

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

    def step(self, x0: torch.Tensor, x_t: torch.Tensor, index: torch.Tensor, to: torch.Tensor) -> torch.Tensor:
        """The deterministic (DDIM) step of x_t (B, C, h, w) from `index` (B,) to `to` (B,), where `x0` is x̂(x_t)."""
        alpha, sigma = self.at(index)
        alpha_to, sigma_to = self.at(to)
        return alpha_to * x0 + sigma_to / sigma * (x_t - alpha * x0)

    def x0_of_step(self, x_to: torch.Tensor, x_t: torch.Tensor, index: torch.Tensor, to: torch.Tensor) -> torch.Tensor:
        """The x̂ (B, C, h, w) whose one step from `index` to `to` leads from x_t to `x_to` (Salimans and Ho, App. G)."""
        alpha, sigma = self.at(index)
        alpha_to, sigma_to = self.at(to)
        ratio = sigma_to / sigma
        return (x_to - ratio * x_t) / (alpha_to - ratio * alpha)

    def nearest(self, timesteps: torch.Tensor) -> torch.Tensor:
        """Indices (n,) of the training timesteps that are nearest to a sampler's `timesteps` (n,)."""
        gaps = timesteps.float().to(self.timesteps.device)[:, None] - self.timesteps.float()
        return gaps.abs().argmin(1).cpu()

    def snr(self, index: torch.Tensor) -> torch.Tensor:
        """(alpha/sigma)^2 at `index` (B,)."""
        return (self.alpha[index] / self.sigma[index]) ** 2
