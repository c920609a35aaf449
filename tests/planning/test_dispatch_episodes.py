"""Whole episodes by every scheduler: what must hold, and what the order of the schedulers rests on."""

import dataclasses

import numpy as np
import pytest

from fedkd.planning.cluster import ClusterSetting, draw
from fedkd.planning.dispatch import SCHEDULERS
from fedkd.planning.dispatch_episodes import run
from fedkd.planning.dispatch_hindsight import hindsight, lower_bound_s
from fedkd.planning.system import PlanningError

OVERLOADED = ClusterSetting(edges=8, slots=30, tasks=50)
LIGHT = dataclasses.replace(OVERLOADED, tasks=12)
HARD = dataclasses.replace(
    OVERLOADED, slots=12, tasks=30, failure=0.05, models=5, held=2, miss_s=0.3, sizes="heavy", variant="random"
)


@pytest.mark.parametrize("information", ["slot-start", "in-slot"])
@pytest.mark.parametrize("name", sorted(SCHEDULERS))
def test_every_scheduler_serves_every_task_where_edges_fail_and_models_are_missing(name, information):
    arrivals = draw(HARD, range(2))
    found = run(arrivals, SCHEDULERS[name], information)
    assert [len(each) for each in found.delays_s] == arrivals.mask.sum(axis=(1, 2, 3)).tolist()
    assert all(np.isfinite(each).all() and (each > 0).all() for each in found.delays_s)


@pytest.mark.parametrize("setting", [OVERLOADED, LIGHT], ids=["overloaded", "light"])
def test_no_scheduler_goes_below_the_lower_bound(setting):
    arrivals = draw(setting, range(2))
    bound = lower_bound_s(arrivals)
    for name, rule in SCHEDULERS.items():
        assert (run(arrivals, rule).mean_s >= bound).all(), name


@pytest.mark.parametrize("variant", ["fixed", "random"])
def test_social_is_ahead_of_the_greedy_oracle_with_less_information(variant):
    arrivals = draw(dataclasses.replace(OVERLOADED, variant=variant), range(3))
    oracle = run(arrivals, SCHEDULERS["greedy"], "in-slot").mean_s.mean()
    assert run(arrivals, SCHEDULERS["social"]).mean_s.mean() < 0.85 * oracle


def test_social_is_ahead_of_the_greedy_oracle_where_the_load_is_light():
    arrivals = draw(LIGHT, range(4))
    social, oracle = (run(arrivals, SCHEDULERS[name], "in-slot").mean_s.mean() for name in ("social", "greedy"))
    assert social < 0.95 * oracle


def test_hindsight_is_no_worse_than_any_ceiling_it_tries():
    arrivals = draw(dataclasses.replace(OVERLOADED, slots=15), range(2))
    grid = [(0.6, 5.0), (1.0, 18.0)]
    both = hindsight(arrivals, "slot-start", grid).mean_s
    for each in grid:
        assert (both <= hindsight(arrivals, "slot-start", [each]).mean_s + 1e-12).all()


def test_the_lower_bound_of_one_edge_is_its_shortest_tasks_first():
    setting = ClusterSetting(edges=1, slots=2, tasks=9, variant="random")
    arrivals = draw(setting, [3])
    work = np.sort(arrivals.work[arrivals.mask])
    assert lower_bound_s(arrivals)[0] == pytest.approx(np.cumsum(work).mean() / arrivals.cluster.speed[0])


def test_an_information_that_is_not_known_is_named():
    with pytest.raises(PlanningError, match="information='all'"):
        run(draw(LIGHT, [1]), SCHEDULERS["local"], "all")


def test_social_gains_from_seeing_more_also_in_overload() -> None:
    arrivals = draw(ClusterSetting(slots=31), range(2))
    less, more = (run(arrivals, SCHEDULERS["social"], each).mean_s.mean() for each in ("slot-start", "in-slot"))
    assert arrivals.cluster.load > 1.2 and more < 1.02 * less
