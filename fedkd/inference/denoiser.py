"""Denoising that can stop after any step and go on anywhere, equal to the diffusers pipeline bit for bit."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import lru_cache
from typing import Any

import torch
from diffusers.image_processor import VaeImageProcessor
from diffusers.utils.torch_utils import randn_tensor
from PIL import Image

from fedkd.inference import schedulers
from fedkd.inference.handoff import HandOff, HandOffError
from fedkd.models.conditioning import Conditions, encode_prompts, predict
from fedkd.models.pipeline import DTYPES, denoiser_of, device_of

Progress = Callable[[int, int], None]


@dataclass
class Job:
    """One picture between two steps: its latents (1, C, h, w), its own scheduler, generator and conditions.

    `conditions` has two rows (unconditional first) when `guidance_scale` > 1, else one; it is None on a
    machine that only passes the job on. `step` counts evaluations of the denoiser, 0 to `total`. `evaluated`
    is the last one made here: what the denoiser was shown (1, C, h, w), its guided answer, and the timestep.
    """

    latents: torch.Tensor
    scheduler: Any
    arguments: dict[str, Any]
    seed: int
    generator: torch.Generator
    guidance_scale: float
    conditions: Conditions | None
    step: int = 0
    evaluated: tuple[torch.Tensor, torch.Tensor, torch.Tensor] | None = field(default=None, repr=False)
    _shown: torch.Tensor | None = field(default=None, repr=False)

    @property
    def total(self) -> int:
        """Evaluations of the denoiser in all: T, but 2T-1 for Heun and T+1 for PNDM."""
        return len(self.scheduler.timesteps)

    @property
    def rows(self) -> int:
        """Rows of one evaluation: two under guidance, else one."""
        return 2 if self.guidance_scale > 1 else 1


def encode(pipe: Any, prompt: str, guidance_scale: float) -> Conditions:
    """Conditions of one picture as the diffusers pipelines make them: unconditional row first, if guided."""
    conditions = encode_prompts(pipe, [prompt])
    if guidance_scale <= 1:
        return conditions
    without = encode_prompts(pipe, [""])
    if getattr(pipe.config, "force_zeros_for_empty_prompt", False):  # SDXL
        without |= {k: torch.zeros_like(v) for k, v in without.items() if k != "time_ids"}
    return {key: torch.cat([without[key], conditions[key]]) for key in conditions}


def start(
    pipe: Any,
    conditions: Conditions,
    *,
    seed: int,
    num_inference_steps: int,
    guidance_scale: float,
    scheduler: str | None = None,
    scheduler_options: Mapping[str, Any] | None = None,
) -> Job:
    """A job before its first step, with the first latents that the pipeline draws from a CPU generator.

    `scheduler` names the class (default: the pipeline's own), made afresh from the pipeline's config.
    `scheduler_options` change that config, e.g. solver_order (see `schedulers.OPTIONS`).
    SchedulerError when it cannot be split or cannot take that many steps.
    """
    made = schedulers.scheduler_class(scheduler or type(pipe.scheduler).__name__)
    config = schedulers.configured(made, pipe.scheduler, scheduler_options or {})
    network: Any = denoiser_of(pipe).config
    side = network.sample_size
    height, width = (side, side) if isinstance(side, int) else side
    arguments: dict[str, Any] = {"num_inference_steps": num_inference_steps}
    if config.get("use_dynamic_shifting"):
        arguments["mu"] = _shift(config, (height // network.patch_size) * (width // network.patch_size))
    device = device_of(pipe)
    fresh = schedulers.fresh(made.__name__, config, arguments, str(device))
    dtype = conditions["encoder_hidden_states"].dtype
    latents, generator = first_noise(seed, (1, network.in_channels, height, width), dtype)
    latents = latents.to(device)
    return Job(
        latents=latents * fresh.init_noise_sigma if hasattr(fresh, "init_noise_sigma") else latents,
        scheduler=fresh,
        arguments=arguments,
        seed=seed,
        generator=generator,
        guidance_scale=guidance_scale,
        conditions=conditions,
    )


def first_noise(seed: int, shape: tuple[int, ...], dtype: torch.dtype) -> tuple[torch.Tensor, torch.Generator]:
    """The noise that a pipeline draws with a CPU generator of this seed, and that generator after it."""
    generator = torch.Generator("cpu").manual_seed(seed)
    return randn_tensor(shape, generator=generator, device=torch.device("cpu"), dtype=dtype), generator


def _shift(config: dict[str, Any], tokens: int) -> float:
    """The resolution-dependent shift `mu` of SD3: a straight line through two sequence lengths."""
    low, high = config.get("base_image_seq_len", 256), config.get("max_image_seq_len", 4096)
    slope = (config.get("max_shift", 1.15) - config.get("base_shift", 0.5)) / (high - low)
    return tokens * slope + config.get("base_shift", 0.5) - slope * low


def rows_of(job: Job) -> tuple[torch.Tensor, torch.Tensor]:
    """What the denoiser is shown at the job's next step: scaled latents (rows, C, h, w) and a scalar timestep."""
    t = job.scheduler.timesteps[job.step]
    rows = torch.cat([job.latents] * 2) if job.rows == 2 else job.latents
    if hasattr(job.scheduler, "scale_model_input"):
        rows = job.scheduler.scale_model_input(rows, t)
    job._shown = rows[:1]
    return rows, t


@torch.no_grad()
def settle(job: Job, noise: torch.Tensor) -> None:
    """End the step that `rows_of` began with what the denoiser answered, `noise` (rows, C, h, w), in place.

    Guidance first, e = e_u + s (e_c - e_u), then the scheduler's own step.
    """
    if job.rows == 2:
        unconditional, conditional = noise.chunk(2)
        noise = unconditional + job.guidance_scale * (conditional - unconditional)
    takes = _parameters(type(job.scheduler).step)
    extra: dict[str, Any] = {"eta": 0.0} if "eta" in takes else {}
    extra |= {"generator": job.generator} if "generator" in takes else {}
    t = job.scheduler.timesteps[job.step]
    if job._shown is not None:
        job.evaluated, job._shown = (job._shown, noise, t), None
    job.latents = job.scheduler.step(noise, t, job.latents, **extra, return_dict=False)[0]
    job.step += 1


@lru_cache
def _parameters(function: Callable[..., Any]) -> frozenset[str]:
    return frozenset(inspect.signature(function).parameters)


def last_step(job: Job, until: int | None) -> int:
    """The step that `until` means (None: the end).

    ValueError when it lies behind the job or beyond its end, or when the job has no conditions to get there.
    """
    until = job.total if until is None else until
    if not job.step <= until <= job.total:
        raise ValueError(f"until={until} is out of range; the job stands at {job.step} of {job.total}")
    if job.step < until and job.conditions is None:
        raise ValueError("this job has no conditions; it can be passed on but not denoised here")
    return until


@torch.no_grad()
def denoise(denoiser: torch.nn.Module, job: Job, until: int | None = None, progress: Progress | None = None) -> Job:
    """Take `job` from its step to step `until` (default: the end), in place, one forward a step.

    ValueError when `until` lies behind the job or beyond its end, or the job has no conditions.
    """
    until = last_step(job, until)
    while job.step < until:
        rows, t = rows_of(job)
        settle(job, predict(denoiser, rows, t, job.conditions or {}))
        if progress:
            progress(job.step, job.total)
    return job


def hand_off(job: Job, model: str, *, with_conditions: bool) -> HandOff:
    """What another machine needs to go on with `job` on the model of digest `model`."""
    scheduler = job.scheduler
    name, config = type(scheduler).__name__, schedulers.config_of(scheduler)
    twin = schedulers.fresh(name, config, job.arguments, str(job.latents.device))
    drawn = job.generator.get_state()
    unused = first_noise(job.seed, tuple(job.latents.shape), job.latents.dtype)[1].get_state()
    return HandOff(
        latents=job.latents,
        scheduler=name,
        scheduler_config=config,
        arguments=dict(job.arguments),
        state=schedulers.changed_state(scheduler, twin),
        step=job.step,
        guidance_scale=job.guidance_scale,
        seed=job.seed,
        generator=None if torch.equal(drawn, unused) else drawn,
        dtype=str(job.latents.dtype).removeprefix("torch."),
        model=model,
        conditions=job.conditions if with_conditions else None,
    )


def take_up(found: HandOff, *, conditions: Conditions | None = None, device: str = "cpu") -> Job:
    """The job that `found` describes, with `conditions` where the hand-off carries none.

    HandOffError when its scheduler, state, step or dtype cannot be.
    """
    conditions = found.conditions if found.conditions is not None else conditions
    if found.dtype not in DTYPES or found.latents.dtype != DTYPES[found.dtype]:
        raise HandOffError(f"malformed hand-off: dtype {found.dtype!r} is not that of its latents")
    if conditions is not None:
        rows = 2 if found.guidance_scale > 1 else 1
        if any(tensor.shape[0] != rows for tensor in conditions.values()):
            raise HandOffError(f"malformed hand-off: conditions must have {rows} rows at this guidance")
        conditions = {name: tensor.to(device) for name, tensor in conditions.items()}
    latents = found.latents.to(device)
    try:
        schedulers.check_settings(found.scheduler, found.scheduler_config)
        scheduler = schedulers.fresh(found.scheduler, found.scheduler_config, found.arguments, device)
        if found.step > len(scheduler.timesteps):
            raise HandOffError(f"malformed hand-off: step {found.step} of {len(scheduler.timesteps)}")
        schedulers.apply_state(scheduler, found.state, step=found.step, latents=latents)
        if found.generator is None:
            generator = first_noise(found.seed, tuple(latents.shape), latents.dtype)[1]
        else:
            generator = torch.Generator("cpu")
            generator.set_state(found.generator)
    except schedulers.SchedulerError as error:
        raise HandOffError(f"hand-off refused: {error}") from error
    except RuntimeError as error:
        raise HandOffError("malformed hand-off: the generator state is not one") from error
    return Job(
        latents=latents,
        scheduler=scheduler,
        arguments=dict(found.arguments),
        seed=found.seed,
        generator=generator,
        guidance_scale=found.guidance_scale,
        conditions=conditions,
        step=found.step,
    )


@torch.no_grad()
def decode(vae: Any, latents: torch.Tensor) -> Image.Image:
    """The picture of final latents (1, C, h, w), as the diffusers pipelines decode it."""
    config, before = vae.config, vae.dtype
    upcast = before == torch.float16 and bool(getattr(config, "force_upcast", False))
    try:
        if upcast:
            vae.to(torch.float32)
        shift = getattr(config, "shift_factor", None) or 0.0
        scaled = latents.to(vae.device, vae.dtype) / config.scaling_factor + shift
        pixels = vae.decode(scaled, return_dict=False)[0]
    finally:
        if upcast:
            vae.to(before)
    return VaeImageProcessor().postprocess(pixels, output_type="pil", do_denormalize=[True])[0]
