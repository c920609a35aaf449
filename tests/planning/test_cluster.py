"""The cluster's setting and what arrives there."""

import numpy as np
import pytest

from fedkd.planning.cluster import HELD_OUT_SEEDS, TRAINING_SEEDS, ClusterSetting, draw
from fedkd.planning.system import PlanningError

SMALL = ClusterSetting(edges=4, slots=8, tasks=6)


@pytest.mark.parametrize(
    ("changes", "named"),
    [
        ({"edges": 0}, "edges=0"),
        ({"tasks": 2.5}, "tasks=2.5"),
        ({"capacity": (50, 10)}, "capacity="),
        ({"steps": (1, 2.5)}, "steps="),
        ({"variant": "fluid"}, "variant='fluid'"),
        ({"arrivals": "late"}, "arrivals='late'"),
        ({"failure": 1.0}, "failure=1.0"),
        ({"held": 3, "models": 2}, "held=3"),
        ({"slot_s": 0.0}, "slot_s"),
    ],
)
def test_an_impossible_setting_is_named(changes, named):
    with pytest.raises(PlanningError, match=named):
        ClusterSetting(**changes)


def test_a_seed_gives_the_same_arrivals_alone_and_among_others():
    one, three = draw(SMALL, [5]), draw(SMALL, [3, 5, 4])
    for name in ("mask", "work", "data_bits", "transfer_s", "speed"):
        np.testing.assert_array_equal(getattr(one, name)[0], getattr(three, name)[1])


def test_held_out_seeds_are_none_of_those_to_train_on():
    assert HELD_OUT_SEEDS.start >= TRAINING_SEEDS.stop and len(HELD_OUT_SEEDS) == 30


def test_in_the_fixed_variant_work_depends_on_the_index_alone():
    found = draw(SMALL, range(4))
    assert (np.where(found.mask, found.work - found.cluster.table, 0) == 0).all()


def test_every_base_station_gets_one_to_the_most_tasks_without_gaps():
    found = draw(SMALL, range(20)).mask
    counts = found.sum(axis=-1)
    assert counts.min() == 1 and counts.max() == SMALL.tasks
    assert (found == (np.arange(SMALL.tasks) < counts[..., None])).all()


@pytest.mark.parametrize("changes", [{"arrivals": "bursty"}, {"arrivals": "diurnal"}, {"sizes": "heavy"}])
def test_other_arrivals_and_sizes_bring_the_same_work_in_the_mean(changes):
    plain = ClusterSetting(edges=10, tasks=20, variant="random")
    other = ClusterSetting(edges=10, tasks=20, variant="random", **changes)
    usual, found = (draw(each, range(40)).work.sum() for each in (plain, other))
    assert found == pytest.approx(usual, rel=0.08)


def test_the_load_is_what_arrives_over_what_can_be_done():
    for variant in ("fixed", "random"):
        found = draw(ClusterSetting(variant=variant), range(20))
        measured = found.work.sum() / (found.speed.sum())
        assert found.cluster.load == pytest.approx(measured, rel=0.03)


def test_every_model_lies_somewhere():
    for seed in range(20):
        cached = ClusterSetting(edges=5, models=8, held=2, cluster_seed=seed).cluster().cached
        assert cached.any(axis=0).all()


def test_edges_fail_and_come_back():
    down = draw(ClusterSetting(failure=0.05, repair_slots=4), range(10)).speed == 0
    assert 0.1 < down.mean() < 0.25
    assert (down[:, :-1] & ~down[:, 1:]).any()


def test_no_seed_and_a_negative_seed_are_refused():
    for seeds in ([], [-1]):
        with pytest.raises(PlanningError, match="seeds="):
            draw(SMALL, seeds)
