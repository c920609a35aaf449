"""Stacked agents, their pools and their training on a small cluster."""

import dataclasses

import numpy as np
import pytest
import torch

from fedkd.planning.cluster import ClusterSetting
from fedkd.planning.learning import edge_files
from fedkd.planning.learning.edge_agents import METHODS, Agents, AgentSetting
from fedkd.planning.learning.edge_memory import Pools
from fedkd.planning.learning.edge_training import Training
from fedkd.planning.learning.one_at_a_time import measure
from fedkd.planning.system import PlanningError

CLUSTER = ClusterSetting(edges=3, slots=7, tasks=6)
SMALL = AgentSetting(hidden=5, batch=8, pool=40, warm_up=10, updates_a_slot=1)


def batch(agents, rows=8, states=5, actions=3):
    generator = torch.Generator().manual_seed(5)
    drawn = [torch.randn(agents, rows, width, generator=generator) for width in (states, actions, states, actions)]
    reward = torch.randn(agents, rows, generator=generator)
    return [*drawn, reward, torch.randint(actions, (agents, rows), generator=generator)]


def one_of(stack, agent):
    """The agent of a stack, alone."""
    alone = Agents(stack.setting, 1, stack.states, stack.actions)
    for name, places in (
        ("actor", [agent]),
        ("critic", [agent, agent + stack.count]),
        ("target", [agent, agent + stack.count]),
    ):
        with torch.no_grad():
            for mine, theirs in zip(getattr(alone, name), getattr(stack, name), strict=True):
                mine.copy_(theirs[places[: mine.shape[0]]])
    return alone


@pytest.mark.parametrize("method", METHODS)
def test_a_stack_learns_what_each_agent_learns_alone(method):
    setting = dataclasses.replace(SMALL, method=method, denoising_steps=1)  # one step has no noise
    stack = Agents(setting, 2, 5, 3, seed=1)
    alone = [one_of(stack, agent) for agent in range(2)]
    given = batch(2)
    for _ in range(3):
        stack.learn(given)
        for agent, each in enumerate(alone):
            each.learn([part[agent : agent + 1] for part in given])
    for agent, each in enumerate(alone):
        expected = one_of(stack, agent)
        for name in ("actor", "critic", "target"):
            for mine, theirs in zip(getattr(each, name), getattr(expected, name), strict=True):
                torch.testing.assert_close(mine, theirs, rtol=1e-4, atol=1e-6)
        torch.testing.assert_close(each.log_temperature, stack.log_temperature[agent : agent + 1])


def test_a_pool_keeps_the_newest_and_gives_each_agent_its_own():
    pools = Pools(2, 4, 1, 1)
    for first in (0, 3):
        numbers = torch.arange(first, first + 3).float().repeat(2, 1) + torch.tensor([[0.0], [100.0]])
        mask = torch.tensor([[True, True, True], [True, first > 0, False]])
        wide = numbers[..., None]
        pools.add(mask, wide, wide, wide, wide, numbers, numbers.long())
    assert pools.filled.tolist() == [4, 3]
    state, *_, reward, action = pools.sample(200, torch.Generator().manual_seed(0))
    assert set(state[0].flatten().tolist()) == {2.0, 3.0, 4.0, 5.0}
    assert set(reward[1].flatten().tolist()) == {100.0, 103.0, 104.0}
    assert torch.equal(action.float(), reward)


def test_what_follows_a_slots_last_task_is_the_first_of_the_next():
    training = Training(CLUSTER, dataclasses.replace(SMALL, pool=1000), (0,))
    training.run(1)
    rows = training.pools.rows.view(3, 1000, -1)
    for agent in range(3):
        count = int(training.pools.filled[agent])
        state, after = rows[agent, :count, :5], rows[agent, :count, 8:13]
        torch.testing.assert_close(state[1:], after[:-1])


@pytest.mark.parametrize("method", METHODS)
def test_the_same_seeds_train_the_same_agents_also_with_a_break(method, tmp_path):
    setting = dataclasses.replace(SMALL, method=method)
    whole, broken = (Training(CLUSTER, setting, (0, 1)) for _ in range(2))
    whole.run(3)
    broken.run(2)
    edge_files.write(broken, tmp_path)
    resumed = edge_files.read(tmp_path)
    resumed.run(3)
    assert whole.updates > 0
    for name, each in whole.agents.tensors().items():
        torch.testing.assert_close(resumed.agents.tensors()[name], each, rtol=0, atol=0)
    assert whole.evaluate(range(2)) == resumed.evaluate(range(2))


def test_evaluation_leaves_the_training_as_it_was():
    training = Training(CLUSTER, SMALL, (0,))
    before = {name: each.clone() for name, each in training.agents.tensors().items()}
    history = training.history.clone()
    found = training.delays_s(range(2))
    assert len(found[0]) == 2
    assert all(np.isfinite(each).all() for each in found[0])
    assert torch.equal(history, training.history)
    assert all(torch.equal(before[name], each) for name, each in training.agents.tensors().items())


def test_a_file_that_holds_no_training_is_refused(tmp_path):
    assert edge_files.read(tmp_path) is None
    (tmp_path / "training.safetensors").write_bytes(b"junk")
    with pytest.raises(PlanningError, match="delete it"):
        edge_files.read(tmp_path)


def test_an_unknown_method_is_refused():
    with pytest.raises(PlanningError, match="lad-ts, d2sac, sac, dqn"):
        AgentSetting(method="ppo")


def test_one_decision_at_a_time_counts_every_task_of_an_episode():
    found = measure(CLUSTER, SMALL, decisions=4, updates=1)
    assert found.episode_s(0) == found.decisions * found.decision_s
    assert 3 * 6 <= found.decisions <= 3 * 6 * 6
