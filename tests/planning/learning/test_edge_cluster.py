"""The environment beside a slow computation, task by task, and what holds for any decision."""

import dataclasses

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fedkd.planning.cluster import ClusterSetting, draw
from fedkd.planning.learning.edge_cluster import EdgeCluster, make
from fedkd.planning.system import PlanningError

SETTINGS = {
    "default": ClusterSetting(edges=5, slots=9, tasks=7),
    "random": ClusterSetting(edges=4, slots=12, tasks=9, variant="random", slot_s=0.5),
    "failing": ClusterSetting(edges=4, slots=12, tasks=6, variant="random", failure=0.2, repair_slots=3),
    "missing models": ClusterSetting(edges=4, slots=8, tasks=6, models=5, held=2, miss_s=0.7),
}


def by_events(world: EdgeCluster, actions: list[np.ndarray], episode: int, without: tuple | None = None) -> dict:
    """Delays of one episode's tasks by following every edge through time, one task after another."""
    found, setting = world.arrivals, world.setting
    cluster = found.cluster
    free_at = [0.0] * setting.edges  # when each edge has done all that it was given
    delays = {}

    def pace(edge: int, time: float) -> tuple[float, float]:
        slot = int(time / setting.slot_s + 1e-12)
        if slot >= setting.steps_run:
            return cluster.speed[edge], np.inf
        return found.speed[episode, slot, edge], (slot + 1) * setting.slot_s

    def run(edge: int, start: float, work: float) -> float:
        time = start
        while work > 1e-12:
            speed, until = pace(edge, time)
            if speed * (until - time) >= work:
                return time + work / speed
            work -= speed * (until - time)
            time = until
        return time

    for t, action in enumerate(actions):
        now = t * setting.slot_s
        for b in range(setting.edges):
            for n in range(setting.most_tasks):
                if not found.mask[episode, t, b, n] or (t, b, n) == without:
                    continue
                edge = action[episode, b, n]
                work = found.work[episode, t, b, n]
                if not cluster.cached[edge, found.model[episode, t, b, n]]:
                    work = work + setting.miss_s * cluster.speed[edge]
                free_at[edge] = run(edge, max(free_at[edge], now), work)
                away = found.transfer_s[episode, t, b, n] if edge != b else 0.0
                delays[t, b, n] = free_at[edge] - now + away
    return delays


def played(setting: ClusterSetting, seeds=range(3), seed=0) -> tuple[EdgeCluster, list[np.ndarray]]:
    """An episode under random decisions that favour few edges, so that queues grow and run empty."""
    rng = np.random.default_rng(seed)
    world, actions = EdgeCluster(draw(setting, seeds)), []
    while not world.over:
        actions.append(rng.integers(0, rng.integers(1, setting.edges + 1), world.slot.mask.shape))
        world.step(actions[-1])
    return world, actions


@pytest.mark.parametrize("name", SETTINGS)
def test_delays_equal_those_of_a_computation_task_by_task(name):
    world, actions = played(SETTINGS[name])
    for episode in range(3):
        for (t, b, n), delay_s in by_events(world, actions, episode).items():
            assert world.history[t][1].delay_s[episode, b, n] == pytest.approx(delay_s, abs=1e-9)


def test_imposed_delay_is_what_the_others_save_without_the_task():
    world, actions = played(SETTINGS["default"], range(1))
    imposed, everyone = world.imposed(), by_events(world, actions, 0)
    for task in list(everyone)[::7]:
        rest = by_events(world, actions, 0, without=task)
        saved = sum(everyone[other] - delay_s for other, delay_s in rest.items())
        assert imposed[task[0]][0, task[1], task[2]] == pytest.approx(saved, abs=1e-8)


@settings(max_examples=15, deadline=None)
@given(
    edges=st.integers(1, 6),
    tasks=st.integers(1, 8),
    seed=st.integers(0, 10_000),
    name=st.sampled_from(sorted(SETTINGS)),
)
def test_no_task_is_lost_queues_are_never_negative_and_first_come_is_first_served(edges, tasks, seed, name):
    setting = dataclasses.replace(SETTINGS[name], edges=edges, tasks=tasks)
    world, _ = played(setting, [seed, seed + 1], seed)
    found = world.arrivals
    assert world.received.sum() == found.mask.sum()
    assert (world.queues >= 0).all()
    for t, (edge, served) in enumerate(world.history):
        assert ((served.delay_s > 0) == found.mask[:, t]).all()
        done = found.speed[:, t] * setting.slot_s
        work_kept = world.queues[:, t] + served.sent - world.queues[:, t + 1]
        assert (work_kept <= done + 1e-9).all() and (work_kept >= -1e-9).all()
        for s in range(2):
            waits = (served.delay_s - served.own_s)[s]
            for place in range(edges):
                mine = found.mask[s, t] & (edge[s] == place)
                assert (np.diff(waits[mine]) >= -1e-9).all()


def test_a_wrong_action_is_named():
    world = EdgeCluster(draw(SETTINGS["default"], [1]))
    shape = world.slot.mask.shape
    for action, named in ((np.full(shape, 5), "edge 5"), (np.zeros(shape), "float64"), (np.zeros((1, 2), int), "2")):
        with pytest.raises(PlanningError, match=named):
            world.step(action)


def test_an_episode_that_is_over_takes_no_step_and_one_that_runs_has_no_imposed_delay():
    world, actions = played(SETTINGS["default"])
    with pytest.raises(PlanningError, match="reset"):
        world.step(actions[0])
    world.reset()
    with pytest.raises(PlanningError, match="over"):
        world.imposed()


def test_gymnasium_sees_a_vector_environment_whose_reward_is_minus_the_delays():
    setting = SETTINGS["default"]
    env = make(setting, episodes=3)
    seen, _ = env.reset(seed=1)
    assert env.observation_space.contains(seen)
    total, ended = np.zeros(3), np.zeros(3, bool)
    while not ended.any():
        seen, reward, ended, _, info = env.step(env.action_space.sample())
        assert reward == pytest.approx(-info["delay_s"].sum(axis=(1, 2)))
        total += reward
    assert ended.all() and (total < 0).all()


def test_an_observation_of_the_paper_has_data_work_and_all_queues():
    world, _ = played(SETTINGS["default"])
    slot = world.slot
    features = slot.features()
    assert features.shape == (*slot.mask.shape, 2 + world.setting.edges)
    assert (features[0, 1, 2, 2:] == slot.queue[0]).all()
