"""The cost model against EUCI's setting, computed with the dimensionally sane equations."""

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fedkd.planning.system import (
    EUCI_BACKHAUL,
    EUCI_DEVICE,
    EUCI_EDGE,
    EUCI_LINK,
    EUCI_STEPS,
    SD_1_5,
    Cost,
    Link,
    PlanningError,
    cost,
)


def euci(device_steps: int, guidance: bool = False, **changes) -> Cost:
    settings = dict(num_inference_steps=EUCI_STEPS, device_steps=device_steps, guidance=guidance)
    return cost(SD_1_5, EUCI_DEVICE, EUCI_EDGE, EUCI_LINK, **(settings | changes))


@pytest.mark.parametrize(
    ("device_steps", "guidance", "energy_j", "delay_s"),
    [
        (0, False, 30.961, 0.119),
        (55, False, 28.281, 2.696),
        (110, False, 25.449, 5.346),
        (0, True, 61.066, 0.186),
        (55, True, 55.706, 5.336),
        (110, True, 50.193, 10.545),
    ],
)
def test_the_paper_s_setting_costs_what_it_should(device_steps, guidance, energy_j, delay_s):
    found = euci(device_steps, guidance)
    assert found.energy_j == pytest.approx(energy_j, rel=0.01)
    assert found.delay_s == pytest.approx(delay_s, rel=0.01)


LARGEST_SHARE = {0.1: None, 0.25: 2, 0.5: 7, 1: 18, 2: 40, 3: 61, 5: 104}


@pytest.mark.parametrize(("limit_s", "largest"), LARGEST_SHARE.items())
def test_the_largest_device_share_under_a_latency_limit(limit_s, largest):
    allowed = [t for t in range(EUCI_STEPS + 1) if euci(t).delay_s <= limit_s]
    assert max(allowed, default=None) == largest


def test_a_cold_device_waits_for_the_unet():
    assert euci(55, cold_device=True).delay_s - euci(55).delay_s == pytest.approx(110.0, rel=0.01)


def test_a_device_that_runs_no_step_fetches_nothing():
    assert euci(0, cold_device=True) == euci(0)


def test_an_edge_without_the_model_fetches_all_of_it_over_the_backhaul():
    waited = euci(55, edge_miss=True, backhaul=EUCI_BACKHAUL).delay_s - euci(55).delay_s
    assert waited == pytest.approx(8 * SD_1_5.total_bytes / 125e6 + 50e3 / 2e8)


def test_a_miss_does_not_matter_to_a_device_that_does_everything():
    assert euci(110, edge_miss=True) == euci(110)


def test_an_edge_miss_without_a_backhaul_is_an_error():
    with pytest.raises(PlanningError, match="backhaul=None"):
        euci(55, edge_miss=True)


def test_a_device_that_does_everything_uses_no_network():
    assert euci(110).network_s == 0


def test_edge_first_sends_no_picture_and_decodes_on_the_device():
    first, last = euci(55, order="device_first"), euci(55, order="edge_first")
    one_way = EUCI_LINK.delay_s(SD_1_5.latents_bytes) + EUCI_LINK.delay_s(SD_1_5.image_bytes)
    assert first.network_s - last.network_s == pytest.approx(one_way)
    assert last.compute_s > first.compute_s


@pytest.mark.parametrize("guidance", [False, True])
def test_a_split_picture_moves_these_bytes_and_no_others(guidance):
    """fp16: latents 4×64×64 both ways, an embedding 77×768 (two with guidance) and the RGB picture 512² down."""
    moved = 2 * 32_768 + 118_272 * (2 if guidance else 1) + 786_432
    messages = 3
    waited = moved * 8 / 125e6 + messages * 5e3 / 2e8
    assert euci(55, guidance).network_s == pytest.approx(waited, rel=1e-12)
    assert euci(0, guidance).network_s == pytest.approx(786_432 * 8 / 125e6 + 5e3 / 2e8, rel=1e-12)


def test_the_most_that_a_split_saves_is_17_8_percent():
    at = [euci(t).energy_j for t in range(EUCI_STEPS + 1)]
    assert 100 * (1 - min(at) / at[0]) == pytest.approx(17.8, abs=0.05)
    assert max(at) == at[0]


@settings(deadline=None)
@given(st.integers(1, 300), st.data(), st.booleans(), st.sampled_from(["device_first", "edge_first"]))
def test_no_split_costs_less_energy_than_both_ends(steps, data, guidance, order):
    share = data.draw(st.integers(0, steps))
    at = [euci(t, guidance, num_inference_steps=steps, order=order).energy_j for t in (0, share, steps)]
    assert min(at[0], at[2]) * (1 - 1e-12) <= at[1]


@settings(deadline=None)
@given(st.integers(0, 110), st.floats(1e3, 1e12), st.floats(0, 1e7))
def test_delay_adds_up_and_a_wider_link_is_never_slower(device_steps, bandwidth_bps, distance_m):
    at = [
        cost(
            SD_1_5,
            EUCI_DEVICE,
            EUCI_EDGE,
            Link(width, distance_m),
            num_inference_steps=110,
            device_steps=device_steps,
            guidance=False,
        )
        for width in (bandwidth_bps, 2 * bandwidth_bps)
    ]
    assert at[0].delay_s == pytest.approx(at[0].compute_s + at[0].network_s)
    assert at[1].delay_s <= at[0].delay_s


@pytest.mark.parametrize(
    ("wrong", "named"),
    [
        ({"device_steps": 111}, "device_steps=111"),
        ({"device_steps": -1}, "device_steps=-1"),
        ({"num_inference_steps": 0}, "num_inference_steps=0"),
        ({"order": "cloud_first"}, "order='cloud_first'"),
        ({"decode": "cloud"}, "decode='cloud'"),
    ],
)
def test_a_plan_that_cannot_be_is_named(wrong, named):
    with pytest.raises(PlanningError, match=named):
        euci(**({"device_steps": 55} | wrong))
