"""The losses of Eqs. 14-16 beside sums written out."""

import math

import pytest
import torch

from fedkd.planning.learning import discrete_sac as sac

AGENTS, ROWS, ACTIONS = 2, 3, 4


@pytest.fixture
def drawn():
    generator = torch.Generator().manual_seed(1)
    return (
        torch.randn(AGENTS, ROWS, ACTIONS, generator=generator),
        torch.randn(2, AGENTS, ROWS, ACTIONS, generator=generator),
        torch.randn(AGENTS, ROWS, generator=generator),
        torch.tensor([[0.05], [0.2]]),
    )


def softmax(row):
    powers = [math.exp(value) for value in row]
    return [value / sum(powers) for value in powers]


def test_the_target_is_the_reward_and_what_the_policy_expects_next(drawn):
    logits, values, reward, temperature = drawn
    found = sac.target(reward, logits, values, temperature, 0.95)
    for g in range(AGENTS):
        for k in range(ROWS):
            chance = softmax(logits[g, k].tolist())
            worth = sum(p * min(values[0, g, k, a], values[1, g, k, a]).item() for a, p in enumerate(chance))
            uncertain = -sum(p * math.log(p) for p in chance)
            wanted = reward[g, k].item() + 0.95 * (worth + temperature[g, 0].item() * uncertain)
            assert found[g, k].item() == pytest.approx(wanted, rel=1e-5)


def test_the_critic_loss_is_the_mean_square_of_each_critic_of_each_agent(drawn):
    _, values, wanted, _ = drawn
    action = torch.tensor([[0, 3, 1], [2, 2, 0]])
    found = sac.critic_loss(values, action, wanted).item()
    total = sum(
        (values[j, g, k, action[g, k]] - wanted[g, k]).item() ** 2 / ROWS
        for j in range(2)
        for g in range(AGENTS)
        for k in range(ROWS)
    )
    assert found == pytest.approx(total, rel=1e-5)


@pytest.mark.parametrize("squared", [True, False])
def test_the_actor_loss_is_equation_15(drawn, squared):
    logits, values, _, temperature = drawn
    found, uncertain = sac.actor_loss(logits, values, temperature, squared)
    total = 0.0
    for g in range(AGENTS):
        for k in range(ROWS):
            chance = softmax(logits[g, k].tolist())
            entropy = -sum(p * math.log(p) for p in chance)
            assert uncertain[g, k].item() == pytest.approx(entropy, rel=1e-5)
            worth = sum(p * min(values[0, g, k, a], values[1, g, k, a]).item() for a, p in enumerate(chance))
            each = -temperature[g, 0].item() * entropy - worth
            total += (each**2 if squared else each) / ROWS
    assert found.item() == pytest.approx(total, rel=1e-5)


@pytest.mark.parametrize(("as_printed", "falls"), [(False, True), (True, False)])
def test_the_temperature_falls_while_the_policy_is_random_enough_but_not_as_printed(as_printed, falls):
    log = torch.zeros(1, 1, requires_grad=True)
    sac.temperature_loss(log, torch.full((1, 5), 2.5), -1.0, as_printed).backward()
    assert (log.grad.item() > 0) == falls
