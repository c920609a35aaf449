"""The paper's learner: it runs, repeats with its seed, learns something, and never breaks a budget."""

import numpy as np
import pytest

from fedkd.planning.learning.denoising_env import Rounds
from fedkd.planning.learning.diffusion_sac import Learning, diffusion_actor, train
from fedkd.planning.system import PlanningError

SMALL = dict(rounds_a_step=4, batch=32, hidden=32, warm_up=10)


def test_the_same_seed_gives_the_same_policy():
    world = Rounds(2)
    first, second = [train(world, Learning(steps=25, **SMALL)) for _ in range(2)]
    states = np.stack([world.draw(np.random.default_rng(seed))[0] for seed in range(3)])
    actions = first.act(states)
    assert actions.shape == (3, 4)
    assert (np.abs(actions) <= 1).all()
    assert (actions == second.act(states)).all()
    assert first.rewards == second.rewards
    assert first.training_s > 0


def test_learning_beats_chance_and_keeps_to_the_budgets():
    world = Rounds(2)
    policy = train(world, Learning(steps=400, learning_rate=3e-3, **(SMALL | {"warm_up": 100})))
    rng = np.random.default_rng(9)
    learned, chance = [], []
    for _ in range(100):
        state, problem = world.draw(rng)
        found = policy.plan(state, problem)
        assert found.within_budget
        learned.append(found.reward)
        chance.append(world.answer(problem, rng.uniform(-1, 1, world.action_size)).reward)
    assert np.mean(learned) > np.mean(chance)


def test_a_discount_uses_the_target_networks():
    policy = train(Rounds(1), Learning(steps=15, discount=0.9, **SMALL))
    assert np.isfinite([reward for _, reward in policy.rewards]).all()


def test_the_actor_s_log_density_is_that_of_its_last_transition():
    import torch

    torch.manual_seed(0)
    actor, weights = diffusion_actor(3, 2, Learning(hidden=16))
    actions, log_density = actor(torch.zeros(500, 3))
    assert log_density.shape == (500,)
    assert torch.isfinite(log_density).all()
    (log_density.mean() + actions.mean()).backward()
    assert all(torch.isfinite(weight.grad).all() for weight in weights)


@pytest.mark.parametrize(
    ("changes", "words"),
    [({"steps": 0}, "steps=0"), ({"discount": 1.0}, "discount=1.0"), ({"learning_rate": 0.0}, "learning_rate")],
)
def test_settings_that_cannot_learn_are_refused(changes, words):
    with pytest.raises(PlanningError, match=words):
        Learning(**changes)
