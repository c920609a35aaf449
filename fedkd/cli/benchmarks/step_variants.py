"""One distillation step with B teachers: ours, one full UNet a teacher, and a loop over `set_adapter`."""

from __future__ import annotations

import copy
import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

OURS, SAMPLED, WHOLE, LOOP = "ours, all", "ours, sampled", "one UNet a teacher, all", "set_adapter loop, all"
VARIANTS = (OURS, SAMPLED, WHOLE, LOOP)
PICTURES, CAPTIONS = 64, 8
WARM_UP = 2
REPEATS = 7
SD15_UNET = {  # the architecture of Stable Diffusion 1.5; the rest are diffusers' defaults
    "sample_size": 64,
    "block_out_channels": (320, 640, 1280, 1280),
    "layers_per_block": 2,
    "attention_head_dim": 8,
    "cross_attention_dim": 768,
}
SD15_TOKENS, SD15_BATCH = 77, 8

Step = Callable[[int], None]


@dataclass
class Bench:
    """A denoiser with random weights or tiny-sd's, and random pictures in its latent space, to time steps on."""

    denoiser: Any
    scheduler: Any
    examples: Any
    config: Any  # the distillation section
    device: Any


def bench_of(recipe: Any, size: str) -> Bench:
    """`tiny`: the recipe's own model. `sd15`: Stable Diffusion 1.5's UNet, 512², random weights, 8 pictures a step."""
    import torch

    from fedkd.models.conditioning import encode_prompts, latent_shape
    from fedkd.models.pipeline import DTYPES, denoiser_of, load_pipeline
    from fedkd.training.examples import Examples

    run, config = recipe.run, replace(recipe.distillation, student="lora", form="same", distance="mse")
    device, dtype = torch.device(run.device), DTYPES[run.dtype]
    torch.manual_seed(0)
    if size == "sd15":
        from diffusers import DDIMScheduler, UNet2DConditionModel

        with torch.device(device):
            denoiser = UNet2DConditionModel(**SD15_UNET)
        denoiser = denoiser.to(dtype).requires_grad_(False).eval()
        denoiser.enable_gradient_checkpointing()
        scheduler = DDIMScheduler(beta_start=0.00085, beta_end=0.012, beta_schedule="scaled_linear")
        shape: tuple[int, ...] = (4, 64, 64)
        conditions = {"encoder_hidden_states": torch.randn(CAPTIONS + 1, SD15_TOKENS, 768).to(device, dtype)}
        config = replace(config, batch_size=SD15_BATCH)
    elif size == "tiny":
        pipe = load_pipeline(recipe.model.path, device=run.device, dtype=run.dtype, scheduler=recipe.model.scheduler)
        denoiser, scheduler = denoiser_of(pipe), pipe.scheduler
        shape = latent_shape(pipe, recipe.model.resolution)
        conditions = encode_prompts(pipe, [f"caption {i}" for i in range(CAPTIONS)] + [""])
    else:
        raise ValueError(f"--size {size} is not known; give tiny or sd15")
    latents = torch.randn(PICTURES, *shape).to(device, dtype)
    examples = Examples(latents, conditions, torch.arange(PICTURES) % CAPTIONS)
    return Bench(denoiser, scheduler, examples, config, device)


def stepper(bench: Bench, variant: str, teachers: int, counts: tuple[int, ...]) -> tuple[dict[int, Step], list[Any]]:
    """A training step by number of teachers (`counts`, none above `teachers`), and all that was set up for it.

    lambda is uniform over the teachers; every teacher's adapter has the recipe's rank.
    """
    import torch

    from fedkd.distillation.federated import Federated
    from fedkd.distillation.method import Lesson
    from fedkd.distillation.student import Student
    from fedkd.models.adapter import add_adapter
    from fedkd.training.loop import new_optimizer, step_generator
    from fedkd.training.noise import NoiseSchedule

    names = [f"teacher-{i}" for i in range(teachers)]
    denoiser, config = bench.denoiser, bench.config
    config = replace(config, teachers="sampled" if variant == SAMPLED else "all")
    modules = {name: copy.deepcopy(denoiser) for name in names} if variant == WHOLE else {}
    student = Student(denoiser, config, seed=0)
    schedule = NoiseSchedule.of(bench.scheduler, bench.device)
    for number, name in enumerate([] if modules else names):
        for parameter in add_adapter(denoiser, name, config.lora, seed=number):
            parameter.requires_grad_(False)
    denoiser.set_adapter("student")
    optimizer = new_optimizer(student.parameters, config.learning_rate)
    kind = switching_teachers() if variant == LOOP else None

    def step_with(count: int) -> Step:
        from fedkd.distillation.teachers import Teachers

        asked = (kind or Teachers)(denoiser, names[:count], schedule, {n: modules[n] for n in names[:count] if modules})
        lesson = Lesson(
            config=config,
            student=student,
            teachers=asked,
            examples=bench.examples,
            schedule=schedule,
            scheduler=bench.scheduler,
            guidance_scale=1.0,
            decode=lambda latents: latents,
            kept=torch.arange(len(bench.examples)),
        )
        method = Federated(lesson)

        def step(number: int) -> None:
            method.loss(step_generator(0, number))["loss"].backward()
            optimizer.step()
            optimizer.zero_grad(set_to_none=True)

        return step

    return {count: step_with(count) for count in counts}, [*modules.values(), optimizer]


def switching_teachers() -> Any:
    """What one would otherwise write: each teacher's adapter made the active one, and asked by itself."""
    import torch

    from fedkd.distillation.teachers import Teachers
    from fedkd.models.conditioning import predict, take

    class SwitchingTeachers(Teachers):
        """Adapters one after the other through `set_adapter`."""

        def _mixed(self, names: list[str], x_t: Any, timesteps: Any, conditions: Any) -> Any:
            output = torch.empty_like(x_t, dtype=next(self.denoiser.parameters()).dtype)
            for name in sorted(set(names)):
                rows = torch.tensor([i for i, other in enumerate(names) if other == name])
                self.denoiser.set_adapter(name)
                output[rows] = predict(self.denoiser, x_t[rows], timesteps[rows], take(conditions, rows))
            self.denoiser.set_adapter("student")
            return output

    return SwitchingTeachers


def seconds(recipe: Any, size: str, variant: str, counts: tuple[int, ...], repeats: int = REPEATS) -> dict[int, float]:
    """Median seconds a step by number of teachers, the numbers taking turns so that a busy moment hits all."""
    bench = bench_of(recipe, size)
    steps, _ = stepper(bench, variant, max(counts), counts)
    return {count: statistics.median(found) for count, found in _turns(steps, bench.device, repeats).items()}


def paces(recipe: Any, gammas: tuple[float, ...], repeats: int = 15) -> list[float]:
    """Median seconds a step at each gamma, one teacher a picture, taking turns."""
    steps: dict[int, Step] = {}
    for number, gamma in enumerate(gammas):
        bench = bench_of(replace(recipe, distillation=replace(recipe.distillation, gamma=gamma)), "tiny")
        teachers = recipe.federation.edges + 1
        steps[number] = stepper(bench, SAMPLED, teachers, (teachers,))[0][teachers]
    found = _turns(steps, bench.device, repeats)
    return [statistics.median(found[number]) for number in range(len(gammas))]


def _turns(steps: dict[int, Step], device: Any, repeats: int) -> dict[int, list[float]]:
    """Seconds of every step, after a warm-up, round by round."""
    import torch

    def wait() -> None:
        if device.type == "cuda":
            torch.cuda.synchronize(device)

    found: dict[int, list[float]] = {key: [] for key in steps}
    for number in range(-WARM_UP, repeats):
        for key, step in steps.items():
            wait()
            started = time.perf_counter()
            step(number + WARM_UP)
            wait()
            if number >= 0:
                found[key].append(time.perf_counter() - started)
    return found
