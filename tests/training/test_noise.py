"""The forward process agrees with diffusers, and x0 comes back from a perfect output for every prediction type."""

import pytest
import torch
from diffusers import DDIMScheduler, FlowMatchEulerDiscreteScheduler
from hypothesis import given, settings
from hypothesis import strategies as st

from fedkd.training.noise import NoiseSchedule


@pytest.mark.parametrize("kind", ["epsilon", "v_prediction", "sample", "flow"])
def test_a_perfect_output_gives_back_x0(kind: str) -> None:
    scheduler = FlowMatchEulerDiscreteScheduler() if kind == "flow" else DDIMScheduler(prediction_type=kind)
    schedule = NoiseSchedule.of(scheduler)
    generator = torch.Generator().manual_seed(0)
    x0, noise = (torch.randn(5, 4, 8, 8, generator=generator) for _ in range(2))
    index = torch.tensor([0, 10, 300, 700, 990])
    x_t = schedule.add_noise(x0, noise, index)
    recovered = schedule.predicted_x0(schedule.target(x0, noise, index), x_t, index)
    assert torch.allclose(recovered, x0, atol=2e-3)


def test_noise_and_velocity_equal_those_of_diffusers() -> None:
    scheduler = DDIMScheduler(prediction_type="v_prediction", rescale_betas_zero_snr=True)
    schedule = NoiseSchedule.of(scheduler)
    generator = torch.Generator().manual_seed(0)
    x0, noise = (torch.randn(4, 4, 8, 8, generator=generator) for _ in range(2))
    index = torch.tensor([0, 400, 998, 999])
    assert torch.allclose(schedule.add_noise(x0, noise, index), scheduler.add_noise(x0, noise, index), atol=1e-6)
    assert torch.allclose(schedule.target(x0, noise, index), scheduler.get_velocity(x0, noise, index), atol=1e-6)


@pytest.mark.parametrize("to_one", [True, False])
@pytest.mark.parametrize("kind", ["epsilon", "v_prediction", "sample"])
def test_a_step_is_diffusers_own_ddim_step(kind: str, to_one: bool) -> None:
    scheduler = DDIMScheduler(prediction_type=kind, clip_sample=False, set_alpha_to_one=to_one)
    scheduler.set_timesteps(10)
    schedule = NoiseSchedule.of(scheduler)
    generator = torch.Generator().manual_seed(0)
    for place, following in ((900, 800), (100, 0), (0 + 99, -1)):
        x_t, output = (torch.randn(1, 4, 4, 4, generator=generator) for _ in range(2))
        index, to = torch.tensor([place]), torch.tensor([following])
        ours = schedule.step(schedule.predicted_x0(output, x_t, index), x_t, index, to)
        assert torch.allclose(ours, scheduler.step(output, place, x_t).prev_sample, atol=1e-4)


def test_a_flow_step_is_diffusers_own_euler_step() -> None:
    scheduler = FlowMatchEulerDiscreteScheduler(shift=3.0)
    schedule = NoiseSchedule.of(scheduler)
    scheduler.set_timesteps(4)
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(1, 4, 4, 4, generator=generator)
    places = [*schedule.nearest(scheduler.timesteps).tolist(), -1]
    for t, place, following in zip(scheduler.timesteps, places, places[1:], strict=False):
        output = torch.randn(x.shape, generator=generator)
        index, to = torch.tensor([place]), torch.tensor([following])
        ours = schedule.step(schedule.predicted_x0(output, x, index), x, index, to)
        theirs = scheduler.step(output, t, x).prev_sample
        assert torch.allclose(ours, theirs, atol=5e-3)  # the nearest of 1000 training levels
        x = theirs


@settings(max_examples=60, deadline=None)
@given(
    st.sampled_from(["epsilon", "v_prediction", "sample", "flow"]),
    st.booleans(),
    st.integers(1, 999),
    st.integers(-1, 998),
    st.integers(0, 1000),
)
def test_inverting_a_step_gives_back_its_x0(kind: str, zero_snr: bool, place: int, to: int, seed: int) -> None:
    to = min(to, place - 1)
    if kind == "flow":
        schedule = NoiseSchedule.of(FlowMatchEulerDiscreteScheduler())
    else:
        scheduler = DDIMScheduler(prediction_type=kind, rescale_betas_zero_snr=zero_snr and kind != "epsilon")
        schedule = NoiseSchedule.of(scheduler)
    generator = torch.Generator().manual_seed(seed)
    x0, x_t = (torch.randn(2, 4, 4, 4, generator=generator, dtype=torch.float64) for _ in range(2))
    index, target = torch.full((2,), place), torch.full((2,), to)
    x_to = schedule.step(x0, x_t, index, target)
    assert torch.allclose(schedule.x0_of_step(x_to, x_t, index, target), x0, atol=1e-2)


def test_inverting_the_last_step_of_a_schedule_that_stays_noisy_is_finite() -> None:
    schedule = NoiseSchedule.of(DDIMScheduler(set_alpha_to_one=False, steps_offset=1))
    x_t, x0 = torch.randn(2, 1, 4, 4, 4, generator=torch.Generator().manual_seed(0)).unbind()
    index, end = torch.tensor([1]), torch.tensor([-1])
    back = schedule.x0_of_step(schedule.step(x0, x_t, index, end), x_t, index, end)
    assert torch.allclose(back, x0, atol=1e-2)


def test_the_training_schedule_does_not_depend_on_pictures_drawn_before() -> None:
    for scheduler in (FlowMatchEulerDiscreteScheduler(shift=3.0), DDIMScheduler()):
        fresh = NoiseSchedule.of(scheduler)
        scheduler.set_timesteps(12)
        after = NoiseSchedule.of(scheduler)
        assert len(after) == len(fresh) == 1000
        assert torch.equal(after.sigma, fresh.sigma) and torch.equal(after.timesteps, fresh.timesteps)


def test_the_nearest_training_level_is_found() -> None:
    schedule = NoiseSchedule.of(DDIMScheduler())
    assert schedule.nearest(torch.tensor([999.0, 500.4, 0.2])).tolist() == [999, 500, 0]


@settings(max_examples=30, deadline=None)
@given(st.integers(0, 999))
def test_the_signal_to_noise_ratio_is_that_of_the_table(place: int) -> None:
    scheduler = DDIMScheduler()
    cumprod = float(scheduler.alphas_cumprod[place])
    assert float(NoiseSchedule.of(scheduler).snr(torch.tensor([place]))) == pytest.approx(
        cumprod / (1 - cumprod), rel=1e-3
    )
