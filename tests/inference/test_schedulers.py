"""A fresh scheduler is the one that diffusers makes of the same config, whatever else the config holds."""

from __future__ import annotations

from typing import Any

import diffusers
import pytest

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
