"""The environment of denoising control: states, actions and rewards, with and without gymnasium."""

import numpy as np
import pytest

from fedkd.planning.denoising import solve
from fedkd.planning.learning.denoising_env import EPISODE, Rounds, make
from fedkd.planning.system import PlanningError


def test_a_state_has_what_the_paper_names_for_each_user():
    world = Rounds(5)
    state, problem = world.draw(np.random.default_rng(0))
    assert state.shape == (world.state_size,) == (5 * 9 + 2,)
    each = state[:-2].reshape(5, 9)
    assert (each[:, :4].sum(axis=1) == 1).all()
    assert each[:, 8] * 12 == pytest.approx(problem.device_steps)
    assert state[-2:] == pytest.approx([1, 1])


def test_an_action_is_steps_and_the_edge_s_share():
    world = Rounds(2)
    edge, device = world.decode(np.array([1.0, -1.0, 0.0, 1.0]))
    assert (edge + device).tolist() == [world.most_steps, 1]
    assert edge.tolist() == [world.most_steps // 2, 1]
    wild = world.decode(np.array([9.0, -9.0, 9.0, -9.0]))
    assert (wild[0] >= 0).all()
    assert (wild[1] >= 0).all()


def test_a_reward_is_the_optimum_s_at_most_and_broken_limits_cost():
    world, rng = Rounds(5), np.random.default_rng(1)
    for _ in range(20):
        _, problem = world.draw(rng)
        action = rng.uniform(-1, 1, world.action_size)
        found = world.answer(problem, action)
        assert found.within_budget
        assert found.reward <= solve(problem, "reward").reward + 1e-9
    greedy = np.ones(world.action_size)  # thirty steps for all, all at the edge
    over = 5 * world.most_steps - problem.edge_steps
    assert world.reward(problem, greedy) < -0.15 * over + 5


def test_gymnasium_s_own_check_passes():
    pytest.importorskip("gymnasium")
    from gymnasium.utils.env_checker import check_env

    check_env(make(users=3), skip_render_check=True)


def test_an_episode_ends_and_repeats_with_its_seed():
    pytest.importorskip("gymnasium")
    env = make(users=2)

    def rewards():
        env.reset(seed=3)
        found = [env.step(np.zeros(4)) for _ in range(EPISODE)]
        return [each[1] for each in found], [each[3] for each in found]

    first, ends = rewards()
    assert ends == [False] * (EPISODE - 1) + [True]
    assert rewards()[0] == first


def test_nobody_is_no_world():
    with pytest.raises(PlanningError, match="users=0"):
        Rounds(0)
