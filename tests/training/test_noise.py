"""The forward process agrees with diffusers, and x0 comes back from a perfect output for every prediction type."""

import pytest
import torch
from diffusers import DDIMScheduler, FlowMatchEulerDiscreteScheduler

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
    assert torch.allclose(
        schedule.add_noise(x0, noise, index), scheduler.add_noise(x0, noise, index), atol=1e-6
    )
    assert torch.allclose(
        schedule.target(x0, noise, index), scheduler.get_velocity(x0, noise, index), atol=1e-6
    )
