"""A fresh scheduler is the one that diffusers makes of the same config, whatever else the config holds."""

from __future__ import annotations

from typing import Any

import diffusers
import pytest
import torch

from fedkd.inference import schedulers

pytestmark = pytest.mark.filterwarnings("ignore:__array__:DeprecationWarning", "ignore::FutureWarning")


@pytest.mark.parametrize("name", schedulers.SCHEDULERS)
def test_a_fresh_scheduler_has_all_that_from_config_gives_it(tiny_pipeline: Any, name: str) -> None:
    made = getattr(diffusers, name)
    config = schedulers.configured(made, tiny_pipeline.scheduler, {})
    assert config == schedulers.config_of(made.from_config(tiny_pipeline.scheduler.config))
    expected = made.from_config(dict(config))
    expected.set_timesteps(num_inference_steps=6)
    found = schedulers.fresh(name, config | {"self": 1, "kwargs": 2, "unknown": 3}, {"num_inference_steps": 6})
    assert vars(found).keys() == vars(expected).keys()
    assert not schedulers.changed_state(found, expected)
    assert schedulers.same(found.timesteps, expected.timesteps)
    assert schedulers.config_of(found) == schedulers.config_of(expected)


def test_a_scheduler_that_was_prepared_before_comes_again_as_new(tiny_pipeline: Any) -> None:
    config = schedulers.configured(diffusers.EulerDiscreteScheduler, tiny_pipeline.scheduler, {})
    asked = ("EulerDiscreteScheduler", config, {"num_inference_steps": 4})
    first, untouched = schedulers.fresh(*asked), schedulers.fresh(*asked)
    latents = torch.zeros(1, 4, 4, 4)
    first.step(latents, first.timesteps[0], latents)
    first.sigmas.zero_()
    again = schedulers.fresh(*asked)
    assert schedulers.changed_state(again, untouched) == {} and torch.equal(again.sigmas, untouched.sigmas)
    other = schedulers.fresh(asked[0], config | {"num_train_timesteps": 500}, asked[2])
    assert not torch.equal(other.sigmas, again.sigmas)


def test_a_config_that_would_take_hours_to_prepare_is_refused() -> None:
    with pytest.raises(schedulers.SchedulerError, match="num_train_timesteps=3000 is not from 1 to 2000"):
        schedulers.fresh("KDPM2DiscreteScheduler", {"num_train_timesteps": 3000}, {"num_inference_steps": 2})
