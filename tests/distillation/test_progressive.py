"""Progressive distillation against two explicit steps of diffusers' own DDIM."""

from typing import Any

import pytest
import torch
from diffusers import DDIMScheduler, PNDMScheduler

from fedkd.distillation.method import Method
from fedkd.distillation.progressive import Progressive
from fedkd.distillation.student import PREVIOUS
from fedkd.models.conditioning import take
from tests.distillation.classroom import alone, classroom, family, gradient, recipe, student_alone

KINDS = ["epsilon", "v_prediction", "sample"]


def ddim(kind: str) -> Any:
    return DDIMScheduler(
        prediction_type=kind,
        clip_sample=False,
        timestep_spacing="trailing",
        rescale_betas_zero_snr=kind != "epsilon",
    )


def output_for(scheduler: Any, x0: torch.Tensor, x_t: torch.Tensor, t: int) -> torch.Tensor:
    """The model output that stands for `x0`."""
    alpha, sigma = scheduler.alphas_cumprod[t] ** 0.5, (1 - scheduler.alphas_cumprod[t]) ** 0.5
    noise = (x_t - alpha * x0) / sigma
    return {"epsilon": noise, "v_prediction": alpha * noise - sigma * x0, "sample": x0}[
        scheduler.config.prediction_type
    ]


def guided(method: Method, name: str, x: torch.Tensor, t: int, conditions: Any, scale: float) -> torch.Tensor:
    timesteps, denoiser = torch.tensor([t]), method.student.denoiser
    told = alone(denoiser, name, x, timesteps, conditions)
    without = alone(denoiser, name, x, timesteps, method.lesson.examples.empty(1))
    return without + scale * (told - without)


@pytest.mark.parametrize("kind", KINDS)
def test_one_ddim_step_to_the_target_lands_where_two_of_the_teachers_do(kind: str) -> None:
    chosen = recipe("method=progressive", "progressive.start_steps=8", "model.guidance_scale=1.0")
    with classroom(family("sd"), chosen, scheduler=ddim(kind), edges=1) as method:
        assert isinstance(method, Progressive)
        method.setup(0)
        batch = method.batch(torch.Generator().manual_seed(0))
        place = torch.arange(4)
        index, to = method.own[place], method.own[place + 1]
        x_t = torch.randn(batch.x0.shape, generator=torch.Generator().manual_seed(1))
        target = method.teacher_target(batch, x_t, index, to)
        teacher, student = ddim(kind), ddim(kind)
        teacher.set_timesteps(8)
        student.set_timesteps(4)
        assert index.tolist() == student.timesteps.tolist()
        for row in range(4):
            conditions = take(batch.conditions, torch.tensor([row]))
            x = x_t[row : row + 1]
            for t in teacher.timesteps[2 * row : 2 * row + 2].tolist():
                x = teacher.step(guided(method, "edge-0", x, t, conditions, 1.0), t, x).prev_sample
            t = int(student.timesteps[row])
            one = student.step(output_for(student, target[row : row + 1], x_t[row : row + 1], t), t, x_t[row : row + 1])
            assert torch.allclose(one.prev_sample, x, atol=2e-3 * float(x.abs().max()))


def test_the_loss_weighs_the_distance_to_that_target() -> None:
    chosen = recipe("method=progressive", "model.guidance_scale=1.0", "weighting=truncated_snr")
    with classroom(family("sd"), chosen, edges=1) as method:
        assert isinstance(method, Progressive)
        method.setup(0)
        found = method.loss(torch.Generator().manual_seed(0))["loss"]
        generator = torch.Generator().manual_seed(0)
        batch = method.batch(generator)
        place = torch.randint(2, (4,), generator=generator)
        index, to = torch.tensor([999, 499])[place], torch.tensor([499, -1])[place]
        scheduler = method.lesson.scheduler
        noise = torch.randn(batch.x0.shape, generator=generator)
        x_t = scheduler.add_noise(batch.x0, noise, index)
        target = method.teacher_target(batch, x_t, index, to)
        cumprod = scheduler.alphas_cumprod[index].view(-1, 1, 1, 1)
        own = cumprod**0.5 * x_t - (1 - cumprod) ** 0.5 * student_alone(method, x_t, index, batch.conditions)
        snr = (cumprod / (1 - cumprod)).flatten()
        expected = (snr.clamp(min=1) * ((own - target) ** 2).mean((1, 2, 3))).mean()
        assert float(found.detach()) == pytest.approx(float(expected.detach()), rel=1e-4)
        assert torch.allclose(gradient(method, found), gradient(method, expected), rtol=1e-3, atol=1e-5)


def test_guidance_is_distilled_first_where_it_is_used() -> None:
    with classroom(family("sd"), recipe("method=progressive", "steps=10")) as method:
        assert method.phases() == [("guidance", 3), ("2 steps", 3), ("1 step", 4)]
        assert [method.student_steps(phase) for phase in range(3)] == [None, 2, 1]
    with classroom(family("sd"), recipe("method=progressive", "model.guidance_scale=1.0")) as method:
        assert [name for name, _ in method.phases()] == ["2 steps", "1 step"]


def test_in_the_guidance_phase_the_target_is_the_guided_teachers_x0() -> None:
    chosen = recipe("method=progressive", "model.guidance_scale=3.0", "weighting=uniform")
    with classroom(family("sd"), chosen, edges=1) as method:
        method.setup(0)
        found = method.loss(torch.Generator().manual_seed(0))["loss"]
        generator = torch.Generator().manual_seed(0)
        batch = method.batch(generator)
        index = torch.randint(1000, (4,), generator=generator)
        x_t = method.lesson.scheduler.add_noise(batch.x0, torch.randn(batch.x0.shape, generator=generator), index)
        cumprod = method.lesson.scheduler.alphas_cumprod[index].view(-1, 1, 1, 1)
        own = student_alone(method, x_t, index, batch.conditions)
        rows = [torch.tensor([row]) for row in range(4)]
        told = torch.cat(
            [guided(method, "edge-0", x_t[row], int(index[row]), take(batch.conditions, row), 3.0) for row in rows]
        )
        # Both x̂ are alpha x_t - sigma v, so their difference is sigma times that of v.
        expected = ((1 - cumprod) * (own - told) ** 2).mean()
        assert float(found.detach()) == pytest.approx(float(expected.detach()), rel=1e-4)


def test_after_the_first_halving_the_teacher_is_the_student_of_the_phase_before() -> None:
    chosen = recipe("method=progressive", "progressive.start_steps=8", "model.guidance_scale=1.0")
    with classroom(family("sd"), chosen) as method:
        assert isinstance(method, Progressive)
        method.setup(1)
        frozen = [p.detach().clone() for p in method.student.parameters]
        for parameter in method.student.parameters:
            parameter.data += 0.3
        batch = method.batch(torch.Generator().manual_seed(0))
        x_t, index, to = torch.randn(4, 4, 8, 8), torch.full((4,), 999), torch.full((4,), 499)
        target = method.teacher_target(batch, x_t, index, to)
        for parameter, before in zip(method.student.parameters, frozen, strict=True):
            parameter.data.copy_(before)
        scheduler, x = ddim("v_prediction"), x_t
        scheduler.alphas_cumprod = method.lesson.scheduler.alphas_cumprod
        scheduler.set_timesteps(4)
        with torch.no_grad():
            for t in (999, 749):
                v = student_alone(method, x, torch.full((4,), t), batch.conditions)
                x = scheduler.step(v, t, x).prev_sample
        assert PREVIOUS in method.student.denoiser.peft_config
        ours = method.schedule.step(target, x_t, index, to)
        assert torch.allclose(ours, x, atol=1e-3)


def test_with_edges_as_teachers_all_of_their_steps_within_the_students_are_taken() -> None:
    from_eight = ["steps=4", "progressive.start_steps=8", "progressive.teacher=edges"]
    chosen = recipe("method=progressive", *from_eight, "model.guidance_scale=2.0")
    with classroom(family("sd"), chosen, edges=1) as method:
        assert isinstance(method, Progressive)
        method.setup(2)  # guidance, 4 steps, 2 steps
        assert method.steps == 2
        batch = method.batch(torch.Generator().manual_seed(0))
        x_t, index, to = torch.randn(4, 4, 8, 8), torch.full((4,), 999), torch.full((4,), 499)
        target = method.teacher_target(batch, x_t, index, to)
        scheduler = ddim("v_prediction")
        scheduler.alphas_cumprod = method.lesson.scheduler.alphas_cumprod
        scheduler.set_timesteps(8)
        conditions, x = take(batch.conditions, torch.tensor([0])), x_t[:1]
        for t in (999, 874, 749, 624):
            x = scheduler.step(guided(method, "edge-0", x, t, conditions, 2.0), t, x).prev_sample
        ours = method.schedule.step(target[:1], x_t[:1], index[:1], to[:1])
        assert torch.allclose(ours, x, atol=2e-3)


@pytest.mark.parametrize("base", ["leading", "trailing", "pndm"])
def test_the_students_steps_are_those_of_the_scheduler_it_is_drawn_with(base: str) -> None:
    """SD 1.5 comes with PNDM and leading timesteps, of which one step alone would begin at t = 1."""
    plain = dict(beta_schedule="scaled_linear", steps_offset=1, set_alpha_to_one=False)
    scheduler: Any = (
        PNDMScheduler(skip_prk_steps=True, **plain)
        if base == "pndm"
        else DDIMScheduler(timestep_spacing=base, clip_sample=False, **plain)
    )
    chosen = recipe("method=progressive", "model.guidance_scale=1.0", "progressive.start_steps=8")
    with classroom(family("sd"), chosen, scheduler=scheduler, edges=1) as method:
        assert isinstance(method, Progressive)
        drawing = method.drawing()
        for steps in (8, 4, 2, 1):
            drawing.scheduler.set_timesteps(steps)
            grid = method.grid(steps)
            assert grid[:-1].tolist() == drawing.scheduler.timesteps.tolist() and grid[-1] == -1
            assert grid[0] == 999  # drawing begins in pure noise
        for phase in range(3):
            method.setup(phase)
            assert torch.isfinite(method.loss(torch.Generator().manual_seed(0))["loss"])


@pytest.mark.parametrize("name", ["sd", "sdxl", "sd3"])
def test_a_students_steps_lie_among_its_teachers(name: str) -> None:
    chosen = recipe("method=progressive", "model.guidance_scale=1.0", "progressive.start_steps=8")
    with classroom(family(name), chosen, edges=1) as method:
        assert isinstance(method, Progressive)
        for steps in (4, 2, 1):
            assert set(method.grid(steps).tolist()) <= set(method.grid(2 * steps).tolist())
