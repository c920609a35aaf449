"""Latent consistency distillation against diffusers' LCM scheduler and its own DDIM solver."""

from typing import Any

import pytest
import torch
from diffusers import DDIMScheduler, LCMScheduler

from fedkd.distillation.consistency import Consistency
from fedkd.models.conditioning import take
from tests.distillation.classroom import alone, classroom, family, gradient, recipe, student_alone, x0_of_v


def test_the_boundary_condition_is_that_of_diffusers_lcm_scheduler() -> None:
    with classroom(family("sd"), recipe("method=consistency"), edges=1) as method:
        assert isinstance(method, Consistency)
        places = torch.tensor([0, 1, 19, 500, 999])
        skip, out = method.boundary(places)
        scheduler = LCMScheduler()
        for row, t in enumerate(places):
            expected = scheduler.get_scalings_for_boundary_condition_discrete(t)
            found = float(skip[row]), float(out[row])
            assert found == pytest.approx((float(expected[0]), float(expected[1])), rel=1e-5)


def test_at_the_end_of_sampling_the_answer_is_what_was_given() -> None:
    with classroom(family("sd"), recipe("method=consistency"), edges=1) as method:
        assert isinstance(method, Consistency)
        batch = method.batch(torch.Generator().manual_seed(0))
        skip, out = method.boundary(torch.tensor([-1]))
        assert (float(skip), float(out)) == (1.0, 0.0)
        x = torch.randn(batch.x0.shape)
        assert torch.equal(method.consistent(x, torch.full((4,), -1), batch.conditions), x)


def f(method: Consistency, x: torch.Tensor, t: torch.Tensor, conditions: Any) -> torch.Tensor:
    """c_skip x + c_out x̂, with diffusers' coefficients."""
    both = [LCMScheduler().get_scalings_for_boundary_condition_discrete(int(place)) for place in t]
    skip, out = (torch.tensor([float(pair[i]) for pair in both]).view(-1, 1, 1, 1) for i in range(2))
    output = student_alone(method, x, t, conditions)
    return skip * x + out * x0_of_v(method.lesson.scheduler, output, x, t)


@pytest.mark.parametrize("scale", [1.0, 3.0])
def test_the_loss_compares_a_point_with_the_guided_teachers_next_one(scale: float) -> None:
    chosen = recipe(
        "method=consistency", "consistency.solver_steps=20", f"model.guidance_scale={scale}", "batch_size=8"
    )
    with classroom(family("sd"), chosen, edges=1) as method:
        assert isinstance(method, Consistency)
        method.setup(0)
        found = method.loss(torch.Generator().manual_seed(3))["loss"]
        generator = torch.Generator().manual_seed(3)
        batch = method.batch(generator)
        place = torch.randint(1, 21, (8,), generator=generator)
        t = 50 * place - 1
        scheduler = method.lesson.scheduler
        x_t = scheduler.add_noise(batch.x0, torch.randn(batch.x0.shape, generator=generator), t)
        solver = DDIMScheduler.from_config(scheduler.config)
        solver.set_timesteps(20)
        following = []
        for row in range(8):
            told, one = take(batch.conditions, torch.tensor([row])), t[row : row + 1]
            said = [
                alone(method.student.denoiser, "edge-0", x_t[row : row + 1], one, c)
                for c in (method.lesson.examples.empty(1), told)
            ]
            guided = said[0] + scale * (said[1] - said[0])
            following.append(solver.step(guided, int(one), x_t[row : row + 1]).prev_sample)
        next_t, after = t - 50, torch.cat(following)
        with torch.no_grad():
            target = torch.where(
                (next_t < 0).view(-1, 1, 1, 1), after, f(method, after, next_t.clamp(min=0), batch.conditions)
            )
        gap = f(method, x_t, t, batch.conditions) - target
        expected = ((gap**2 + 0.001**2).sqrt() - 0.001).mean()
        assert float(found.detach()) == pytest.approx(float(expected.detach()), rel=1e-3)
        ours, theirs = gradient(method, found), gradient(method, expected)
        assert theirs.norm() > 0 and (ours - theirs).norm() < 1e-2 * theirs.norm()


def test_the_last_solver_step_of_a_batch_has_no_nan() -> None:
    with classroom(family("sd"), recipe("method=consistency", "consistency.solver_steps=2"), edges=1) as method:
        method.setup(0)
        for seed in range(3):
            assert torch.isfinite(method.loss(torch.Generator().manual_seed(seed))["loss"])


def test_the_solvers_grid_is_that_of_the_sampler() -> None:
    with classroom(family("sd"), recipe("method=consistency"), edges=1) as method:
        assert isinstance(method, Consistency)
        assert method.grid.tolist() == [-1, *range(19, 1000, 20)]


@pytest.mark.parametrize("kind", ["lora", "full"])
def test_the_target_network_is_a_moving_average_of_the_student(kind: str) -> None:
    chosen = recipe("method=consistency", "consistency.target_decay=0.75", f"student={kind}")
    pipe = family("sd")
    with classroom(pipe, chosen, edges=0) as method:
        assert isinstance(method, Consistency)
        method.setup(0)
        batch = method.batch(torch.Generator().manual_seed(0))
        x_t, index = torch.randn(batch.x0.shape), torch.full((4,), 500)
        before = [p.detach().clone() for p in method.student.parameters]
        for parameter in method.student.parameters:
            parameter.data += 0.1
        method.after_step()
        found = method.consistent(x_t, index, batch.conditions, target=True)
        for parameter, old in zip(method.student.parameters, before, strict=True):
            parameter.data.copy_(0.75 * old + 0.25 * (old + 0.1))
        with torch.no_grad():
            assert torch.allclose(found, f(method, x_t, index, batch.conditions), atol=1e-4)


def test_a_target_decay_of_zero_is_the_student_itself() -> None:
    with classroom(family("sd"), recipe("method=consistency", "consistency.target_decay=0"), edges=1) as method:
        assert isinstance(method, Consistency)
        method.setup(0)
        batch = method.batch(torch.Generator().manual_seed(0))
        x_t, index = torch.randn(batch.x0.shape), torch.full((4,), 500)
        with torch.no_grad():
            told = [method.consistent(x_t, index, batch.conditions, target=target) for target in (True, False)]
        assert torch.equal(*told) and method.student.before is None
