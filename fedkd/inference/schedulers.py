"""Schedulers as facts: class, config, set_timesteps arguments, and what differs from a fresh twin."""

from __future__ import annotations

import copy
import inspect
import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import lru_cache
from typing import Any

import diffusers
import numpy as np
import torch

from fedkd.recipe import nearest

SCHEDULERS = (
    "DDIMScheduler",
    "DDPMScheduler",
    "DEISMultistepScheduler",
    "DPMSolverMultistepScheduler",
    "DPMSolverSinglestepScheduler",
    "EulerAncestralDiscreteScheduler",
    "EulerDiscreteScheduler",
    "FlowMatchEulerDiscreteScheduler",
    "FlowMatchHeunDiscreteScheduler",
    "HeunDiscreteScheduler",
    "KDPM2AncestralDiscreteScheduler",
    "KDPM2DiscreteScheduler",
    "LCMScheduler",
    "LMSDiscreteScheduler",
    "PNDMScheduler",
    "TCDScheduler",
    "UniPCMultistepScheduler",
)
# Attributes that `step` alone creates, so that a fresh scheduler does not have them.
LATE_ATTRIBUTES = {
    "FlowMatchHeunDiscreteScheduler": {"sample", "prev_derivative", "dt"},
    "HeunDiscreteScheduler": {"sample", "prev_derivative", "dt"},
    "KDPM2AncestralDiscreteScheduler": {"sample", "dt"},
    "KDPM2DiscreteScheduler": {"sample"},
    "LCMScheduler": {"sigma_data"},
    "UniPCMultistepScheduler": {"this_order"},
}
FIXED_ATTRIBUTES = {"_internal_dict", "config", "timesteps", "sigmas", "betas", "alphas", "alphas_cumprod"}
ARGUMENTS = {"num_inference_steps", "mu"}
OPTIONS = {"solver_order", "algorithm_type", "solver_type", "use_karras_sigmas", "timestep_spacing", "skip_prk_steps"}
MAX_TRAIN_TIMESTEPS = 10_000
QUADRATIC = {"KDPM2AncestralDiscreteScheduler": 2_000, "KDPM2DiscreteScheduler": 2_000}  # their cost in these
MAX_STEPS = 1_000
PREPARED = 64  # schedulers kept to be copied; some 100 kB each at 1,000 steps


class SchedulerError(ValueError):
    """A scheduler, config, argument or state that split inference cannot use."""


def scheduler_class(name: str) -> Any:
    """The diffusers class called `name`; SchedulerError that names the nearest one unless it is allowed."""
    if name not in SCHEDULERS:
        raise SchedulerError(f"scheduler={name!r} is not known here; {nearest(str(name), SCHEDULERS)}")
    return getattr(diffusers, name)


@lru_cache
def constructor_parameters(made: Any) -> frozenset[str]:
    """The names of what the constructor of class `made` takes."""
    parameters = inspect.signature(made.__init__).parameters.values()
    return frozenset(each.name for each in parameters if each.name != "self" and each.kind is not each.VAR_KEYWORD)


def configured(made: Any, scheduler: Any, options: Mapping[str, Any]) -> dict[str, Any]:
    """The config of class `made` from that of `scheduler` and `options`; SchedulerError for one that it lacks."""
    if type(scheduler) is made and not options:
        return config_of(scheduler)
    known = constructor_parameters(made) & OPTIONS
    for key in options:
        if key not in known:
            takes = ", ".join(sorted(known)) or "none"
            raise SchedulerError(f"scheduler_options.{key} is not an option of {made.__name__}; it takes {takes}")
    try:
        return config_of(made.from_config(scheduler.config, **options))
    except (TypeError, ValueError, NotImplementedError) as error:
        raise SchedulerError(f"scheduler_options={dict(options)} cannot be: {error}") from error


def config_of(scheduler: Any) -> dict[str, Any]:
    """The config values that the scheduler's constructor takes."""
    made: Any = type(scheduler)
    wanted = constructor_parameters(made)
    return {key: value for key, value in dict(scheduler.config).items() if key in wanted}


def check_settings(name: str, config: Mapping[str, Any]) -> None:
    """SchedulerError for a setting that the class `name` does not have: it would silently be another scheduler."""
    unknown = set(config) - constructor_parameters(scheduler_class(name))
    if unknown:
        raise SchedulerError(f"{name} has no setting {min(map(str, unknown))!r}; use the same diffusers on both sides")


def check_config(config: Mapping[str, Any], name: str = "") -> None:
    """Refuse configs that cannot be gone on with elsewhere, or would cost memory or time without bound."""
    if config.get("stochastic_sampling"):
        raise SchedulerError(
            "FlowMatchEulerDiscreteScheduler with stochastic_sampling draws from the global generator, so it "
            "cannot be split; set stochastic_sampling=false"
        )
    steps = config.get("num_train_timesteps", 1000)
    most = QUADRATIC.get(name, MAX_TRAIN_TIMESTEPS)
    if type(steps) is not int or not 1 <= steps <= most:
        raise SchedulerError(f"num_train_timesteps={steps!r} is not from 1 to {most}")


def fresh(name: str, config: Mapping[str, Any], arguments: Mapping[str, Any], device: str = "cpu") -> Any:
    """A new scheduler after `set_timesteps(**arguments)`: nothing but class, config and arguments enters.

    It is a copy of one that was prepared before, where that was: KDPM2's takes a second or more to prepare.
    """
    scheduler_class(name)
    check_config(config, name)
    steps = arguments.get("num_inference_steps")
    if set(arguments) - ARGUMENTS or type(steps) is not int or not 1 <= steps <= MAX_STEPS:
        raise SchedulerError(f"num_inference_steps={steps!r} is out of range; give 1 to {MAX_STEPS}")
    key = json.dumps([name, dict(config), dict(arguments), device], sort_keys=True, default=repr)
    try:
        return copy.deepcopy(_prepared(_Wanted(key, name, config, arguments, device)))
    except Exception as error:
        reason = str(error).strip()[:200]
        raise SchedulerError(f"{name} cannot take num_inference_steps={steps}: {reason}") from error


@dataclass(frozen=True)
class _Wanted:
    """A scheduler as it is asked for; the key alone tells two apart."""

    key: str
    name: str = field(compare=False)
    config: Mapping[str, Any] = field(compare=False)
    arguments: Mapping[str, Any] = field(compare=False)
    device: str = field(compare=False)


@lru_cache(maxsize=PREPARED)
def _prepared(wanted: _Wanted) -> Any:
    made = scheduler_class(wanted.name)
    # Not from_config, which looks through every compatible class to sort out what `made` does not take.
    takes = constructor_parameters(made)
    scheduler = made(**{key: value for key, value in wanted.config.items() if key in takes})
    scheduler.set_timesteps(**wanted.arguments, device=wanted.device)
    return scheduler


def same(a: Any, b: Any) -> bool:
    """Equality bit for bit of two attribute values, NaN equal to NaN."""
    if isinstance(a, torch.Tensor) and isinstance(b, torch.Tensor):
        return a.dtype == b.dtype and a.shape == b.shape and bool(((a == b) | ((a != a) & (b != b))).all())
    if isinstance(a, np.ndarray) and isinstance(b, np.ndarray):
        return a.dtype == b.dtype and a.shape == b.shape and bool(((a == b) | ((a != a) & (b != b))).all())
    if type(a) is not type(b):
        return False
    if isinstance(a, list | tuple):
        return len(a) == len(b) and all(same(x, y) for x, y in zip(a, b, strict=True))
    return bool(a == b)


def changed_state(scheduler: Any, twin: Any) -> dict[str, Any]:
    """The attributes of `scheduler` that differ from its fresh `twin`: all that steps have left behind."""
    absent = object()
    return {
        key: value
        for key, value in vars(scheduler).items()
        if key not in FIXED_ATTRIBUTES and not same(value, getattr(twin, key, absent))
    }


def apply_state(scheduler: Any, state: Mapping[str, Any], *, step: int, latents: torch.Tensor) -> None:
    """Give a fresh scheduler the `state` of one that has done `step` steps on latents like `latents`.

    SchedulerError unless each attribute is one that such a scheduler has, and each tensor is finite and
    has the shape of the latents, of the attribute it replaces, or none at all (a number).
    """
    name = type(scheduler).__name__
    allowed = (set(vars(scheduler)) | LATE_ATTRIBUTES.get(name, set())) - FIXED_ATTRIBUTES
    for key, value in state.items():
        if key not in allowed:
            raise SchedulerError(f"{name} has no state called {key!r}")
        if key == "_step_index" and (type(value) is not int or value != step):
            raise SchedulerError(f"{name}._step_index={value!r} does not fit step {step}")
        before: Any = getattr(scheduler, key, None)
        shapes = {tuple(latents.shape), ()} | (
            {tuple(before.shape)} if isinstance(before, torch.Tensor | np.ndarray) else set()
        )
        if isinstance(before, bool | int) and not isinstance(value, bool | int | torch.Tensor):
            raise SchedulerError(f"{name}.{key} must be a number, not a {type(value).__name__}")
        if isinstance(before, list) and (not isinstance(value, list) or len(value) > 64):
            raise SchedulerError(f"{name}.{key} must be a short list")
        setattr(scheduler, key, _checked(value, f"{name}.{key}", shapes, latents.device))


def _checked(value: Any, where: str, shapes: set[tuple[int, ...]], device: torch.device) -> Any:
    if isinstance(value, torch.Tensor):
        if tuple(value.shape) not in shapes:
            raise SchedulerError(f"{where} has shape {tuple(value.shape)}, expected one of {sorted(shapes)}")
        if not torch.isfinite(value).all():
            raise SchedulerError(f"{where} is not finite")
        return value.to(device) if value.ndim == 4 else value
    if isinstance(value, list | tuple):
        return type(value)(_checked(item, where, shapes, device) for item in value)
    return value
