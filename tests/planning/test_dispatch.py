"""Which edge serves a request, by every scheduler, through the planners' interface."""

import math

import pytest

from fedkd.planning.dispatch import SCHEDULERS, DispatchRequest, DispatchSystem, EdgeState, decide, plan
from fedkd.planning.system import PlanningError

EDGES = (EdgeState("slow", 10.0), EdgeState("fast", 40.0, backlog=20.0), EdgeState("down", 90.0, healthy=False))


@pytest.mark.parametrize("name", sorted(set(SCHEDULERS) - {"local"}))
def test_no_scheduler_sends_to_an_edge_that_is_down(name):
    requests = [DispatchRequest(5.0 * n) for n in range(1, 20)]
    for turn in range(10):
        found = plan(requests, DispatchSystem(EDGES, "slow", name, turn=turn))
        assert {each.edge for each in found} <= {"slow", "fast"}


@pytest.mark.parametrize("name", sorted(SCHEDULERS))
def test_a_scheduler_decides_the_same_twice(name):
    requests = [DispatchRequest(3.0 * n) for n in range(1, 9)]
    system = DispatchSystem(EDGES, "fast", name, turn=3, seed=5)
    assert plan(requests, system) == plan(requests, system)


def test_the_greedy_edge_is_the_one_that_ends_first():
    assert plan([DispatchRequest(2.0)], DispatchSystem(EDGES, "slow", "greedy"))[0].edge == "slow"
    assert plan([DispatchRequest(90.0)], DispatchSystem(EDGES, "slow", "greedy"))[0].edge == "fast"


def test_a_delay_has_the_wait_the_work_the_missing_model_and_the_way():
    edge = EdgeState("far", 10.0, backlog=20.0, age_s=0.5, cached=frozenset({"a"}), miss_s=3.0, rate_bps=8e6)
    system = DispatchSystem((edge,), "", "greedy")
    first, second = plan([DispatchRequest(5.0, "b", data_bytes=1e6), DispatchRequest(5.0, "a")], system)
    assert first.delay_s == pytest.approx(1.5 + 0.5 + 3.0 + 1.0)
    assert second.delay_s == pytest.approx(1.5 + 0.5 + 3.0 + 0.5)


def test_a_missing_model_sends_the_request_to_where_it_lies():
    cached = {"a": frozenset({"x"}), "b": frozenset({"y"})}
    edges = tuple(EdgeState(name, 10.0, cached=cached[name], miss_s=30.0) for name in "ab")
    for model, name in (("x", "a"), ("y", "b")):
        assert plan([DispatchRequest(5.0, model)], DispatchSystem(edges, "a", "greedy"))[0].edge == name


@pytest.mark.parametrize(
    ("make", "named"),
    [
        (lambda: DispatchSystem((), ""), "edges is empty"),
        (lambda: DispatchSystem(EDGES, "nowhere"), "here='nowhere'"),
        (lambda: DispatchSystem(EDGES, "slow", "best"), "scheduler='best'"),
        (lambda: DispatchSystem((EDGES[0], EDGES[0])), "twice"),
        (lambda: DispatchRequest(math.nan), "work=nan"),
        (lambda: EdgeState("x", 0.0), "speed=0"),
        (lambda: plan([DispatchRequest(1.0, origin="z")], DispatchSystem(EDGES)), "origin='z'"),
    ],
)
def test_a_mistake_is_named(make, named):
    with pytest.raises(PlanningError, match=named):
        make()


def test_nothing_to_plan_gives_no_plans():
    assert plan([], DispatchSystem(EDGES)) == []


def test_a_decision_is_the_plans_edges():
    requests = [DispatchRequest(3.0 * n, origin=("slow", "fast")[n % 2]) for n in range(1, 9)]
    system = DispatchSystem(EDGES, "slow", "power-of-two", seed=3)
    assert decide(requests, system) == [each.edge for each in plan(requests, system)]


def test_under_overload_large_requests_go_to_the_full_edge_and_small_ones_to_the_others():
    edges = (EdgeState("full", 10.0, backlog=100.0), *(EdgeState(f"empty {n}", 10.0, backlog=2.0) for n in range(3)))
    requests = [DispatchRequest(work) for work in (0.5, 9.0, 0.6, 8.0, 0.4, 0.7) for _ in range(6)]
    system = DispatchSystem(edges, "full", "social", load=1.4, recent=tuple([0.5, 9.0] * 20), peers=1)
    found = plan(requests, system)
    assert {each.edge == "full" for each, r in zip(found, requests, strict=True) if r.work < 1} == {False}
    assert "full" in {each.edge for each, r in zip(found, requests, strict=True) if r.work > 1}


def test_at_a_light_load_a_request_goes_to_an_idle_edge():
    edges = (EdgeState("busy", 40.0, backlog=400.0), EdgeState("idle", 30.0))
    assert plan([DispatchRequest(5.0)], DispatchSystem(edges, "busy", "social", load=0.1))[0].edge == "idle"
