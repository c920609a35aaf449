"""Splits under limits, with queue, radio, privacy and a smaller UNet: never beaten, never over a limit."""

import math
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from fedkd.planning.machines import Device, EdgeQueue, Link, Timings
from fedkd.planning.split import SplitRequest, SplitSystem, Weights, choose, plan
from fedkd.planning.system import (
    EUCI_BACKHAUL,
    EUCI_DEVICE,
    EUCI_EDGE,
    EUCI_LINK,
    EUCI_STEPS,
    ORDERS,
    SD_1_5,
    PlanningError,
    cost,
)

EUCI = SplitSystem(SD_1_5, EUCI_DEVICE, EUCI_EDGE, EUCI_LINK, backhaul=EUCI_BACKHAUL)
MOST_ON_DEVICE = Weights(delay=0, energy=1)

devices = st.builds(
    Device,
    st.just("d"),
    st.floats(1e11, 1e15),
    st.floats(0.1, 500),
    memory_bytes=st.sampled_from([1e9, 3e9, math.inf]),
    send_watts=st.floats(0, 5),
    receive_watts=st.floats(0, 5),
)
systems = st.builds(
    SplitSystem,
    st.just(SD_1_5),
    devices,
    st.just(EUCI_EDGE),
    st.builds(Link, st.floats(1e5, 1e10), st.floats(0, 1e6)),
    queue=st.builds(EdgeQueue, st.floats(0, 5), st.floats(0, 3), st.floats(1, 4)),
    cold_device=st.booleans(),
    device_unet_flop=st.none() | st.floats(1e10, 1e12),
    device_quality=st.floats(0, 1),
)
requests = st.builds(
    SplitRequest,
    st.integers(1, 25),
    guidance=st.booleans(),
    orders=st.sampled_from([ORDERS, ("edge_first",), ("device_first",)]),
    decode=st.sampled_from([None, "edge", "device"]),
    delay_limit_s=st.none() | st.floats(0.05, 50),
    energy_limit_j=st.none() | st.floats(1, 500),
    private_steps=st.sampled_from([0, 0, 1]),
    weights=st.builds(
        Weights,
        st.floats(0, 1),
        st.floats(0.01, 1),
        st.floats(0, 1),
        delay_reference_s=st.just(1.0),
        energy_reference_j=st.just(10.0),
    ),
)


def priced(request, system, steps, order):
    return cost(
        system.model,
        system.device,
        system.edge,
        system.link,
        num_inference_steps=request.num_inference_steps,
        device_steps=steps,
        guidance=request.guidance,
        order=order,
        decode=request.decode,
        cold_device=system.cold_device,
        queue=system.queue,
        device_unet_flop=system.device_unet_flop,
    )


def keeps(request, system, steps, found):
    return (
        found.delay_s <= (request.delay_limit_s or 1e300)
        and found.energy_j <= (request.energy_limit_j or 1e300)
        and found.device_bytes <= system.device.memory_bytes
        and (not request.private_steps or (steps >= request.private_steps and not found.edge_sees_image))
    )


def loss(request, system, steps, found):
    weights, share = request.weights, steps / request.num_inference_steps
    quality = 1 - (1 - system.device_quality) * share
    delay = weights.delay * found.delay_s if weights.delay else 0.0
    return delay + weights.energy * found.energy_j / 10 - weights.quality * quality


def optimum(request, system):
    choice = choose(request, system)
    return float(choice.loss[choice.chosen])


@given(requests, systems)
@settings(max_examples=120, deadline=None)
def test_the_plan_keeps_every_limit_and_no_split_beats_it(request, system):
    every = [
        (steps, priced(request, system, steps, order))
        for steps in range(request.num_inference_steps + 1)
        for order in request.orders
    ]
    within = [(steps, found) for steps, found in every if keeps(request, system, steps, found)]
    if not within:
        with pytest.raises(PlanningError):
            choose(request, system)
        return
    choice = choose(request, system)
    found = choice.plan("edge")
    mine = priced(request, system, found.device_steps, found.order)
    assert keeps(request, system, found.device_steps, mine)
    assert (mine.delay_s, mine.energy_j) == (found.delay_s, found.energy_j)
    best = min(loss(request, system, steps, each) for steps, each in within)
    assert optimum(request, system) == pytest.approx(best, rel=1e-9, abs=1e-12)
    points = np.array([[each.delay_s, each.energy_j] for _, each in within])
    on_front = choice.front.nonzero()[0]
    for at in on_front if system.device_quality == 1 else []:
        beaten = (points[:, 0] < choice.table.delay_s[at]) & (points[:, 1] < choice.table.energy_j[at])
        assert not beaten.any()
    assert choice.allowed[on_front].all()


@given(requests, systems, st.floats(1.01, 10), st.sampled_from(["link", "device", "edge", "delay", "energy", "queue"]))
@settings(max_examples=120, deadline=None)
def test_more_bandwidth_speed_or_budget_never_makes_it_worse(request, system, factor, what):
    try:
        before = optimum(request, system)
    except PlanningError:
        assume(False)
    if what == "link":
        wider = replace(system.link, bandwidth_bps=factor * system.link.bandwidth_bps)
        after = optimum(request, replace(system, link=wider))
    elif what in ("device", "edge"):
        faster = replace(getattr(system, what), flops_per_s=factor * getattr(system, what).flops_per_s)
        after = optimum(request, replace(system, **{what: faster}))
    elif what == "queue":
        after = optimum(request, replace(system, queue=EdgeQueue()))
    else:
        field = {"delay": "delay_limit_s", "energy": "energy_limit_j"}[what]
        looser = None if getattr(request, field) is None else factor * getattr(request, field)
        after = optimum(replace(request, **{field: looser}), system)
    assert after <= before + 1e-9 * (1 + abs(before))


@pytest.mark.parametrize(("limit_s", "largest"), {0.25: 2, 0.5: 7, 1: 18, 2: 40, 3: 61, 5: 104}.items())
def test_the_largest_share_of_the_device_under_each_limit(limit_s, largest):
    asked = SplitRequest(EUCI_STEPS, orders=("device_first",), delay_limit_s=limit_s, weights=MOST_ON_DEVICE)
    assert plan([asked], EUCI)[0].device_steps == largest


def test_without_a_reason_the_optimum_is_an_end_point():
    for share in np.linspace(0, 1, 11):
        weights = Weights(1 - share, share)
        assert plan([SplitRequest(EUCI_STEPS, weights=weights)], EUCI)[0].device_steps in (0, EUCI_STEPS)


def test_an_edge_that_is_overloaded_alone_is_said_to_be():
    crowded = replace(EUCI, queue=EdgeQueue(arrivals_per_s=1e6))
    found = plan([SplitRequest(EUCI_STEPS)], crowded)[0]
    assert found.device_steps == EUCI_STEPS and "the edge alone would be overloaded" in found.reasons


def test_a_queue_that_grows_with_the_edge_s_work_makes_the_optimum_an_inner_one():
    crowded = replace(EUCI, queue=EdgeQueue(arrivals_per_s=14.4))
    found = plan([SplitRequest(EUCI_STEPS, weights=Weights(1, 0))], crowded)[0]
    assert 0 < found.device_steps < EUCI_STEPS


def test_a_radio_that_costs_more_than_steps_spares_the_picture_s_way_down():
    phone = replace(EUCI_DEVICE, receive_watts=100.0)
    found = plan([SplitRequest(20, weights=MOST_ON_DEVICE, most_device_steps=19)], replace(EUCI, device=phone))[0]
    assert found.order == "edge_first" and found.device_steps == 19
    slow = replace(phone, watts=10.0)
    found = plan([SplitRequest(20, weights=MOST_ON_DEVICE)], replace(EUCI, device=slow))[0]
    assert (found.order, found.device_steps) == ("edge_first", 1)


def test_privacy_moves_the_last_steps_to_the_device_and_no_more():
    found = plan([SplitRequest(EUCI_STEPS, private_steps=5)], EUCI)[0]
    assert (found.order, found.device_steps) == ("edge_first", 5)
    assert "the edge never holds the finished picture" in found.reasons


def test_a_measured_quality_that_falls_late_makes_the_optimum_an_inner_one():
    quality = tuple(1 - 0.3 * (t / 50) ** 3 for t in range(51))
    small = replace(EUCI, device_unet_flop=SD_1_5.unet_flop / 10)
    asked = SplitRequest(50, weights=Weights(0, 0.5, 1.0), quality=quality)
    assert 0 < plan([asked], small)[0].device_steps < 50


def test_a_smaller_unet_on_the_device_is_cheaper_to_run_and_to_fetch():
    asked = SplitRequest(50, weights=Weights(1, 0), most_device_steps=50, private_steps=10)
    whole = choose(asked, replace(EUCI, cold_device=True))
    small = replace(EUCI, cold_device=True, device_unet_flop=SD_1_5.unet_flop / 4, device_unet_bytes=10**8)
    assert choose(asked, small).plan("e").delay_s < whole.plan("e").delay_s - 90


def test_a_device_whose_memory_is_too_small_leaves_all_steps_to_the_edge():
    tiny = replace(EUCI, device=replace(EUCI_DEVICE, memory_bytes=1e9))
    assert plan([SplitRequest(EUCI_STEPS, weights=MOST_ON_DEVICE)], tiny)[0].device_steps == 0


def test_measured_times_take_the_place_of_speeds():
    timings = Timings("m", step_s=0.1, guided_step_s=0.15, encode_s=0.01, decode_s=0.2, message_s=0.005)
    system = replace(EUCI, device=replace(EUCI_DEVICE, timings=timings))
    found = choose(SplitRequest(10, guidance=True, private_steps=10), system).plan("e")
    assert found.delay_s == pytest.approx(10 * 0.15 + 0.01 + 0.2)


def test_equal_requests_get_equal_plans_in_their_order():
    asked = [SplitRequest(10), SplitRequest(20), SplitRequest(10)]
    found = plan(asked, EUCI)
    assert found[0] == found[2] and [each.num_inference_steps for each in found] == [10, 20, 10]


def test_a_limit_of_the_least_that_would_do_is_met():
    for limit, field in ((0.05, "delay_limit_s"), (20.0, "energy_limit_j")):
        with pytest.raises(PlanningError, match=f"{field}={limit:g} cannot be met; give at least") as caught:
            plan([SplitRequest(EUCI_STEPS, **{field: limit})], EUCI)
        least = float(str(caught.value).split("at least ")[1].split()[0])
        assert plan([SplitRequest(EUCI_STEPS, **{field: least})], EUCI)
        with pytest.raises(PlanningError):
            plan([SplitRequest(EUCI_STEPS, **{field: 0.999 * least})], EUCI)


def test_two_limits_that_exclude_each_other_are_both_named():
    with pytest.raises(PlanningError, match=r"cannot both be met; give at least 5\.309 s or .* J"):
        plan([SplitRequest(EUCI_STEPS, delay_limit_s=1, energy_limit_j=25.5)], EUCI)


@pytest.mark.parametrize(
    ("make", "named"),
    [
        (lambda: Device("d", 0, 1), "flops_per_s=0"),
        (lambda: Device("d", math.nan, 1), "flops_per_s=nan"),
        (lambda: Device("d", 1e12, -1), "watts=-1"),
        (lambda: Device("d", 1e12, 1, held=frozenset({"lora"})), "held"),
        (lambda: Link(0, 1), "bandwidth_bps=0"),
        (lambda: Link(1e6, -1), "distance_m=-1"),
        (lambda: Timings("m", 0, 1, 1, 1), "step_s=0"),
        (lambda: EdgeQueue(waiting_s=math.inf), "waiting_s=inf"),
        (lambda: EdgeQueue(slowdown=0.5), "slowdown=0.5"),
        (lambda: SplitRequest(10, delay_limit_s=math.nan), "delay_limit_s=nan"),
        (lambda: SplitRequest(10, energy_limit_j=0), "energy_limit_j=0"),
        (lambda: SplitRequest(10, private_steps=11), "private_steps=11"),
        (lambda: SplitRequest(10, orders=()), "orders"),
        (lambda: SplitRequest(10, quality=(1.0,)), "quality has 1 values"),
        (lambda: SplitRequest(10, weights=Weights(math.nan, 1)), "weights"),
        (lambda: plan([SplitRequest(0)], EUCI), "num_inference_steps=0"),
        (lambda: plan([SplitRequest(9, orders=("up",))], EUCI), "order='up'"),
        (
            lambda: plan([SplitRequest(9, orders=("device_first",), private_steps=3, most_device_steps=8)], EUCI),
            "private_steps=3",
        ),
        (
            lambda: plan([SplitRequest(9, most_device_steps=0)], replace(EUCI, queue=EdgeQueue(arrivals_per_s=1e6))),
            "arrivals_per_s=1e.06 overloads the edge; give less than",
        ),
        (
            lambda: plan(
                [SplitRequest(9, private_steps=1)], replace(EUCI, device=replace(EUCI_DEVICE, memory_bytes=1e6))
            ),
            "memory_bytes=1e.06 cannot be met; give at least 1886349654",
        ),
        (lambda: plan([SplitRequest(9)], replace(EUCI, edge_miss=True, backhaul=None)), "backhaul=None"),
    ],
)
def test_what_cannot_be_is_named_in_one_line(make, named):
    with pytest.raises(PlanningError, match=named) as caught:
        make()
    assert "\n" not in str(caught.value)
