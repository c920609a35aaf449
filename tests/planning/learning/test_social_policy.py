"""The learned scheduler that scores every edge alike: its costs, its invariances, its files."""

import dataclasses

import numpy as np
import pytest

from fedkd.planning.cluster import ClusterSetting, draw
from fedkd.planning.dispatch import SCHEDULERS, DispatchRequest, DispatchSystem, EdgeState, plan
from fedkd.planning.dispatch_episodes import run
from fedkd.planning.learning import social_policy
from fedkd.planning.learning.social_costs import social_costs_s
from fedkd.planning.learning.social_training import SocialSetting, SocialTraining
from fedkd.planning.system import PlanningError

CLUSTER = ClusterSetting(edges=4, slots=12, tasks=12)


@pytest.fixture(scope="module")
def trained():
    training = SocialTraining(SocialSetting(vary=False), CLUSTER)
    training.run(3)
    return training


def test_costs_are_what_one_more_task_would_have_cost_everybody():
    rng = np.random.default_rng(0)
    speed, slots = np.array([3.0, 5.0]), 9
    received = rng.integers(1, 5, (1, slots, 2))
    sent = received * rng.uniform(0.2, 2.0, (1, slots, 2))

    def queues(extra_at=None, extra=0.0):
        found = np.zeros((1, slots + 1, 2))
        for t in range(slots):
            more = extra if t == extra_at else 0.0
            found[:, t + 1] = np.maximum(found[:, t] + sent[:, t] + more - speed, 0)
        return found

    plain = queues()
    # four sizes on the levels of carried work, where straight lines are exact at the corners
    sizes = np.array([0.5, 1.0, 2.0, 4.0])
    costs = social_costs_s(sizes, plain, sent, received, speed)
    for t in range(slots):
        for w, size in enumerate(sizes):
            later = ((queues(t, size) - plain)[:, t + 1 : slots] * received[:, t + 1 :]).sum(1) / speed
            own = (plain[:, t] + sent[:, t] / 2 + size) / speed
            behind = received[:, t] / 2 * size / speed
            np.testing.assert_allclose(costs[:, t, w], own + behind + later, rtol=0.03, atol=0.05)


def situation_of(edges, order=None):
    """Logits of a policy for edges in some order."""
    rng = np.random.default_rng(edges)
    queue, speed = rng.uniform(0, 90, (2, edges)), rng.uniform(10, 50, (2, edges))
    order = np.arange(edges) if order is None else order
    return queue[:, order], speed[:, order], rng.uniform(0.1, 4, (2, 5)), np.array([0.5, 1.3]), 1.0


def test_the_order_of_edges_does_not_matter(trained):
    order = np.random.default_rng(1).permutation(7)
    plain, mixed = (trained.policy.logits(*situation_of(7, each)) for each in (None, order))
    np.testing.assert_allclose(plain[:, :, order], mixed, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("edges", [1, 2, 9])
def test_it_serves_a_number_of_edges_that_it_never_saw(trained, edges):
    setting = dataclasses.replace(CLUSTER, edges=edges)
    found = run(draw(setting, range(2)), trained.policy)
    assert np.isfinite(found.mean_s).all()


def test_its_chances_are_chances_and_edges_that_are_down_get_nothing(trained):
    setting = dataclasses.replace(CLUSTER, failure=0.3, variant="random")
    seen = []

    def watching(now):
        chances = trained.policy.chances(now)
        seen.append((chances, now.up))
        return social_policy.spread(chances, now)

    run(draw(setting, range(2)), watching)
    for chances, up in seen:
        np.testing.assert_allclose(chances.sum(2), 1, rtol=1e-5)
        assert (chances[~np.broadcast_to(up[:, None], chances.shape)] == 0).all()


def test_the_network_in_training_is_the_network_in_use(trained):
    import torch

    *known, share = trained.memory[-1][2:], trained.memory[-1][0]
    features, wait, takes, log_speed, load = known[0]
    with torch.no_grad():
        log = trained._log_chances(features, wait, takes, log_speed, load)
    speed = log_speed[:, 0].exp().double().numpy()
    queue = wait[:, 0].double().numpy() * speed
    work = (takes.double() * torch.as_tensor(speed)[:, None])[..., 0].numpy()
    weights = {name: each.detach().numpy() for name, each in trained.weights.items()}
    logits = social_policy.SocialPolicy(weights).logits(queue, speed, work, load[:, 0, 0].double().numpy() + 1, 1.0)
    wanted = torch.as_tensor(logits).log_softmax(-1)
    assert share.sum().item() == pytest.approx(1, rel=1e-4)
    torch.testing.assert_close(log.double(), wanted, rtol=1e-2, atol=1e-2)


def test_the_same_seed_trains_the_same_policy(trained):
    again = SocialTraining(SocialSetting(vary=False), CLUSTER)
    again.run(3)
    for name, each in again.policy.weights.items():
        np.testing.assert_array_equal(each, trained.policy.weights[name])


def test_an_exported_policy_comes_back_and_plans_by_its_name(trained, tmp_path):
    trained.policy.export(tmp_path / "mine")
    assert sorted(each.name for each in tmp_path.iterdir()) == ["mine.json", "mine.safetensors"]
    found = social_policy.load(tmp_path / "mine")
    for name, each in trained.policy.weights.items():
        np.testing.assert_array_equal(found.weights[name], each)
    name = social_policy.offer(tmp_path / "mine")
    edges = tuple(EdgeState(f"edge {k}", 10.0 + 5 * k, backlog=4.0 * k) for k in range(6))
    plans = plan([DispatchRequest(1.0 + n / 10) for n in range(20)], DispatchSystem(edges, "edge 0", name, load=1.2))
    SCHEDULERS.pop(name)
    assert {each.edge for each in plans} <= {edge.name for edge in edges}


@pytest.mark.parametrize("fault", ["none", "kind", "shape", "nan"])
def test_what_is_no_policy_is_refused(trained, tmp_path, fault):
    path = tmp_path / "mine"
    weights = dict(trained.policy.weights)
    if fault == "shape":
        weights["b1"] = weights["b1"][:-1]
    if fault == "nan":
        weights["b1"] = weights["b1"] * np.nan
    if fault != "none":
        social_policy.SocialPolicy(weights).export(path)
    if fault == "kind":
        path.with_suffix(".json").write_text("{}")
    with pytest.raises(PlanningError, match="mine"):
        social_policy.load(path)
