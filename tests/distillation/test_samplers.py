"""Students are drawn with schedulers that visit the timesteps they were trained on."""

import copy

import pytest
import torch
from diffusers import DPMSolverMultistepScheduler, FlowMatchEulerDiscreteScheduler, LCMScheduler

from fedkd.distillation.samplers import few_step_ddim, lcm_scheduler
from fedkd.models.sampling import sample
from fedkd.training.noise import NoiseSchedule
from tests.distillation.classroom import classroom, family, recipe


@pytest.mark.parametrize("shift", [1.0, 3.0])
def test_few_steps_of_flow_matching_are_eulers_on_equal_training_levels(shift: float) -> None:
    base = FlowMatchEulerDiscreteScheduler(shift=shift)
    schedule, scheduler = NoiseSchedule.of(base), few_step_ddim(base)
    scheduler.set_timesteps(4)
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(1, 4, 4, 4, generator=generator)
    places = [*schedule.nearest(scheduler.timesteps).tolist(), -1]
    for i, t in enumerate(scheduler.timesteps):
        assert places[i] - places[i + 1] == pytest.approx(250, abs=2)
        output = torch.randn(x.shape, generator=generator)
        index, to = torch.tensor([places[i]]), torch.tensor([places[i + 1]])
        ours = schedule.step(schedule.predicted_x0(output, x, index), x, index, to)
        x = scheduler.step(output, t, x).prev_sample
        assert torch.allclose(ours, x, atol=1e-2)


def test_a_students_scheduler_can_be_taught_with_again() -> None:
    base = FlowMatchEulerDiscreteScheduler(shift=3.0)
    of_base, of_student = NoiseSchedule.of(base), NoiseSchedule.of(few_step_ddim(base))
    assert of_student.prediction == "flow" and torch.equal(of_student.sigma, of_base.sigma)
    for again in (few_step_ddim(few_step_ddim(base)), lcm_scheduler(few_step_ddim(base), 8)):
        assert isinstance(again, DPMSolverMultistepScheduler) and again.config.flow_shift == 3.0


@pytest.mark.parametrize("name", ["sd", "sdxl"])
@pytest.mark.parametrize("method", ["consistency", "adversarial"])
@pytest.mark.parametrize("option", ["", "consistency.solver_steps=32", "adversarial.timesteps=3"])
def test_lcm_sampling_visits_timesteps_that_were_trained(name: str, method: str, option: str) -> None:
    with classroom(family(name), recipe(f"method={method}", *([option] if option else [])), edges=1) as taught:
        drawing = taught.drawing()
        assert isinstance(drawing.scheduler, LCMScheduler)
        trained = set(taught.grid.tolist())  # type: ignore[attr-defined]
        drawing.scheduler.set_timesteps(drawing.num_inference_steps)
        assert set(drawing.scheduler.timesteps.tolist()) <= trained
        drawing.scheduler.set_timesteps(1)
        assert set(drawing.scheduler.timesteps.tolist()) <= trained


@pytest.mark.parametrize("name", ["sd", "sdxl", "sd3"])
@pytest.mark.parametrize("method", ["progressive", "adversarial", "consistency"])
def test_a_pipeline_of_each_family_draws_with_a_students_scheduler(name: str, method: str) -> None:
    pipe = copy.copy(family(name))
    with classroom(pipe, recipe(f"method={method}"), edges=1) as taught:
        drawing = taught.drawing()
    own, pipe.scheduler = pipe.scheduler, drawing.scheduler
    try:
        images = sample(
            pipe,
            ["a cat"],
            seed=0,
            num_inference_steps=drawing.num_inference_steps,
            guidance_scale=drawing.guidance_scale,
            resolution=32,
        )
    finally:
        pipe.scheduler = own
    assert images[0].size == (32, 32)
