"""The split is the best there is: no other beats it, and EUCI's own setting gives the known answers."""

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fedkd.planning.split import Split, Weights, best_split
from fedkd.planning.system import (
    EUCI_DEVICE,
    EUCI_EDGE,
    EUCI_LINK,
    EUCI_STEPS,
    ORDERS,
    SD_1_5,
    Device,
    Link,
    PlanningError,
    cost,
)


def euci(**changes) -> Split:
    return best_split(
        SD_1_5, EUCI_DEVICE, EUCI_EDGE, EUCI_LINK, **(dict(num_inference_steps=EUCI_STEPS, guidance=False) | changes)
    )


@pytest.mark.parametrize(("limit_s", "largest"), {0.25: 2, 0.5: 7, 1: 18, 2: 40, 3: 61, 5: 104}.items())
def test_under_a_latency_limit_the_device_does_all_it_can(limit_s, largest):
    found = euci(delay_limit_s=limit_s, orders=["device_first"])
    assert found.device_steps == largest and found.cost.delay_s <= limit_s
    assert f"within {limit_s:g} s" in found.reasons[0]


def test_without_a_limit_the_best_is_an_end_point():
    assert euci().device_steps == 0
    assert euci(weights=Weights(delay=0, energy=1)).device_steps == EUCI_STEPS


def test_a_limit_that_nothing_keeps_gets_the_fastest_and_says_so():
    found = euci(delay_limit_s=0.01)
    assert found.device_steps == 0 and "no split keeps to 0.01 s" in found.reasons[0]


def test_a_smaller_denoiser_on_the_device_gives_it_more_steps():
    before = euci(delay_limit_s=1.0).device_steps
    after = euci(delay_limit_s=1.0, device_unet_flop=SD_1_5.unet_flop / 4)
    assert after.device_steps > 3 * before and after.cost.delay_s <= 1.0


def test_a_device_that_cannot_take_part_leaves_it_to_the_edge():
    assert euci(most_device_steps=0, weights=Weights(0, 1)).device_steps == 0


@given(
    steps=st.integers(1, 30),
    speed=st.floats(1e11, 1e15),
    watts=st.floats(0.1, 500),
    bandwidth=st.floats(1e5, 1e10),
    limit=st.none() | st.floats(0.01, 100),
    guidance=st.booleans(),
    delay=st.floats(0, 1),
)
@settings(max_examples=60, deadline=None)
def test_no_other_split_is_better(steps, speed, watts, bandwidth, limit, guidance, delay):
    device, link, weights = Device("d", speed, watts), Link(bandwidth, 1e3), Weights(delay, 1 - delay + 1e-3)
    found = best_split(
        SD_1_5, device, EUCI_EDGE, link, num_inference_steps=steps, guidance=guidance, delay_limit_s=limit,
        weights=weights,
    )  # fmt: skip
    every = [
        cost(SD_1_5, device, EUCI_EDGE, link, num_inference_steps=steps, device_steps=n, guidance=guidance, order=o)
        for n in range(steps + 1)
        for o in ORDERS
    ]
    alone = every[0]
    if limit is None:
        value = [
            weights.delay * c.delay_s / alone.delay_s + weights.energy * c.energy_j / alone.energy_j for c in every
        ]
        mine = found.cost
        assert weights.delay * mine.delay_s / alone.delay_s + weights.energy * mine.energy_j / alone.energy_j == min(
            value
        )
    elif any(c.delay_s <= limit for c in every):
        assert found.cost.delay_s <= limit
        assert found.cost.energy_j == min(c.energy_j for c in every if c.delay_s <= limit)
    else:
        assert found.cost.delay_s == min(c.delay_s for c in every)


@pytest.mark.parametrize(
    ("changes", "named"),
    [
        ({"orders": []}, "orders"),
        ({"orders": ["sideways"]}, "order"),
        ({"delay_limit_s": 0.0}, "delay_limit_s"),
        ({"weights": Weights(0, 0)}, "weights"),
        ({"most_device_steps": -1}, "most_device_steps"),
        ({"num_inference_steps": 0}, "num_inference_steps"),
    ],
)
def test_what_cannot_be_chosen_from_is_refused_by_name(changes, named):
    with pytest.raises(PlanningError, match=named):
        euci(**changes)
