"""The samplers that few-step students are drawn with, made from the base's own noise schedule."""

from __future__ import annotations

import copy
from typing import Any

from diffusers import DDIMScheduler, DPMSolverMultistepScheduler, LCMScheduler


def few_step_ddim(scheduler: Any) -> Any:
    """Deterministic DDIM (Euler, with flow matching) over equal steps that begin in pure noise.

    Whatever the base's own spacing: `leading` would begin one single step at t = 1, and diffusers' flow
    matching ends at t = 1. With N a power of two the timesteps of N/2 steps are among those of N.
    """
    if scheduler.config.get("use_flow_sigmas"):  # made by this function for an earlier student
        return copy.deepcopy(scheduler)
    if hasattr(scheduler, "alphas_cumprod"):
        return DDIMScheduler.from_config(scheduler.config, timestep_spacing="trailing")
    return DPMSolverMultistepScheduler(
        num_train_timesteps=scheduler.config.num_train_timesteps,
        prediction_type="flow_prediction",
        use_flow_sigmas=True,
        flow_shift=scheduler.config.shift,
        solver_order=1,  # which is Euler's step for x_t = (1 - sigma) x0 + sigma eps
        final_sigmas_type="zero",
    )


def lcm_scheduler(scheduler: Any, original_inference_steps: int) -> Any:
    """diffusers' LCMScheduler over the base's noise schedule; for flow matching the few-step Euler sampler."""
    if hasattr(scheduler, "alphas_cumprod") and not scheduler.config.get("use_flow_sigmas"):
        return LCMScheduler.from_config(scheduler.config, original_inference_steps=original_inference_steps)
    return few_step_ddim(scheduler)
