"""The exact answer to problem P2 against brute force, random search, and what must not happen."""

import itertools
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fedkd.planning.denoising import allocate, solve
from fedkd.planning.denoising_baselines import within_budgets
from fedkd.planning.denoising_exact import WORTH_PRUNING, knapsack
from fedkd.planning.denoising_problem import OBJECTIVES, DenoisingProblem, evaluate
from fedkd.planning.denoising_reach import check_reach
from fedkd.planning.system import PlanningError


def random_problem(seed: int, users: int = 3, variants: int = 1, **changes) -> DenoisingProblem:
    rng = np.random.default_rng(seed)
    steps = np.arange(9)
    top = rng.uniform(0.5, 0.9, (users, variants, 1))
    quality = top * (1 - rng.uniform(0.2, 0.6, (users, variants, 1)) * np.exp(-steps / rng.uniform(1, 4)))
    facts = dict(
        quality=quality * (steps > 0),
        up_bytes=rng.integers(0, 5, (users, variants)) * 10_000,
        quality_floor=rng.uniform(0.4, 0.8, users),
        device_step_s=rng.uniform(0.1, 2, users),
        device_steps=rng.integers(0, 4, users),
        up_bps=rng.uniform(1e6, 2e7, users),
        down_bps=rng.uniform(1e6, 2e7, users),
        edge_steps=int(rng.integers(users, 12 + users)),
        delay_limit_s=float(rng.uniform(0.5, 4)),
    )
    return DenoisingProblem(**(facts | changes))


def worth(found, objective):
    satisfied, fewer, utility = found.key
    return {
        "satisfied-bytes-utility": (satisfied, fewer, utility),
        "satisfied-utility": (satisfied, utility),
        "utility": (utility,),
        "reward": (found.reward,),
    }[objective]


def beats(one, other) -> bool:
    """Whether `one` is lexicographically larger by more than rounding."""
    for a, b in zip(one, other, strict=True):
        if abs(a - b) > 1e-9:
            return a > b
    return False


def brute_force(problem, objective, binary=False):
    pairs = [
        [
            (e, d, v)
            for e in range(problem.least_edge_steps, min(problem.edge_steps, problem.most_steps) + 1)
            for d in range(int(problem.device_steps[k]) + 1)
            for v in range(problem.variants)
            if 1 <= e + d <= problem.most_steps and not (binary and e and d)
        ]
        for k in range(problem.users)
    ]
    best = None
    for each in itertools.product(*pairs):
        if sum(pair[0] for pair in each) <= problem.edge_steps:
            found = worth(evaluate(problem, *np.array(each).T), objective)
            best = found if best is None or beats(found, best) else best
    return best


@pytest.mark.parametrize("objective", OBJECTIVES)
@pytest.mark.parametrize("seed", range(6))
def test_the_optimum_is_brute_force_s(objective, seed):
    problem = random_problem(seed, users=2 + seed % 2, least_edge_steps=seed // 3 % 2)
    found = solve(problem, objective)
    assert found.within_budget
    assert worth(found, objective) == pytest.approx(brute_force(problem, objective), abs=1e-9)


@pytest.mark.parametrize("seed", range(3))
def test_all_or_nothing_is_solved_exactly_too(seed):
    problem = random_problem(seed)
    found = solve(problem, "satisfied-utility", binary=True)
    assert ((found.edge_steps == 0) | (found.device_steps == 0)).all()
    assert worth(found, "satisfied-utility") == pytest.approx(brute_force(problem, "satisfied-utility", True), abs=1e-9)


@pytest.mark.parametrize("seed", range(4))
def test_condition_and_steps_together_are_brute_force_s(seed):
    problem = random_problem(seed, users=2, variants=4)
    found = solve(problem)
    assert worth(found, "satisfied-bytes-utility") == pytest.approx(
        brute_force(problem, "satisfied-bytes-utility"), abs=1e-9
    )


@settings(max_examples=40, deadline=None)
@given(seed=st.integers(0, 10_000), users=st.integers(1, 6), variants=st.integers(1, 3))
def test_no_limit_is_broken_and_chance_never_wins(seed, users, variants):
    problem = random_problem(seed, users, variants, edge_steps=users + seed % 17)
    found = {objective: solve(problem, objective) for objective in OBJECTIVES}
    assert all(each.within_budget for each in found.values())
    rng = np.random.default_rng(seed)
    for _ in range(30):
        edge, device = rng.integers(0, 9, users), rng.integers(0, 4, users)
        edge = np.minimum(edge, problem.most_steps - device)
        other = within_budgets(problem, edge, device, rng.integers(0, variants, users))
        assert other.within_budget
        for objective, best in found.items():
            assert not beats(worth(other, objective), worth(best, objective))


@settings(max_examples=40, deadline=None)
@given(seed=st.integers(0, 10_000), factor=st.floats(1, 4), more=st.integers(0, 8))
def test_more_bandwidth_speed_or_budget_is_never_worse(seed, factor, more):
    problem = random_problem(seed, users=4)
    richer = (
        replace(problem, up_bps=problem.up_bps * factor, down_bps=problem.down_bps * factor),
        replace(problem, device_step_s=problem.device_step_s / factor),
        replace(problem, edge_step_s=problem.edge_step_s / factor),
        replace(problem, edge_steps=problem.edge_steps + more),
        replace(problem, device_steps=problem.device_steps + more),
    )
    for objective in OBJECTIVES:
        before = worth(solve(problem, objective), objective)
        for better in richer:
            assert not beats(before, worth(solve(better, objective), objective))


@settings(max_examples=30, deadline=None)
@given(seed=st.integers(0, 10_000), whole=st.booleans())
def test_pruning_changes_no_optimum(seed, whole):
    rng = np.random.default_rng(seed)
    users, amounts = 60, 9
    secondary = np.cumsum(rng.uniform(-0.1, 1, (users, amounts)) * 0.7 ** np.arange(amounts), axis=1)
    primary = (rng.integers(0, amounts, (users, 1)) <= np.arange(amounts)).astype(float) * (not whole)
    budget = WORTH_PRUNING // users + 60
    primary, secondary = np.repeat(primary, 2, axis=0), np.repeat(secondary, 2, axis=0)
    assert len(primary) * budget > WORTH_PRUNING
    found = knapsack(primary, secondary, budget)
    # the plain program, over every state
    first, second = np.zeros(budget + 1), np.zeros(budget + 1)
    for p, s in zip(primary, secondary, strict=True):
        new_first, new_second = np.full(budget + 1, -np.inf), np.full(budget + 1, -np.inf)
        for e in range(amounts):
            a, b = first[: budget + 1 - e] + p[e], second[: budget + 1 - e] + s[e]
            better = (a > new_first[e:]) | ((a == new_first[e:]) & (b > new_second[e:]))
            new_first[e:][better], new_second[e:][better] = a[better], b[better]
        first, second = new_first, new_second
    user = np.arange(len(primary))
    assert found.sum() <= budget
    assert primary[user, found].sum() == first[budget]
    assert secondary[user, found].sum() == pytest.approx(second[budget], abs=1e-9)


def test_a_thousand_users_are_planned_exactly():
    problem = random_problem(1, users=1000, edge_steps=3000, delay_limit_s=4.0)
    found = solve(problem, "utility")
    assert found.within_budget
    assert found.utility.sum() >= solve(problem).utility.sum()


def test_a_plan_says_who_does_what_and_what_is_missed():
    problem = random_problem(3, quality_floor=np.array([0.1, 0.1, 0.99]), delay_limit_s=50.0, edge_steps=9)
    found, plans = allocate(problem)
    assert found.satisfied.tolist() == [True, True, False]
    for user, each in enumerate(plans):
        assert (each.edge_steps, each.device_steps) == (found.edge_steps[user], found.device_steps[user])
        assert each.order == "edge_first"
    assert "is not reached" in plans[2].reasons[-1]
    assert "0.990" in plans[2].reasons[-1]


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"up_bps": 0.0}, "up_bps=0 must be positive"),
        ({"device_step_s": -1.0}, "device_step_s=-1 must be positive"),
        ({"quality": np.full((3, 1, 5), np.nan)}, "quality holds NaN"),
        ({"quality": np.zeros((0, 1, 5))}, "quality has shape"),
        ({"quality_floor": np.nan}, "quality_floor holds NaN"),
        ({"device_steps": 1.5}, "whole numbers"),
        ({"edge_steps": -1}, "edge_steps=-1"),
        ({"edge_steps": 2.5}, "edge_steps=2.5 must be a whole number"),
        ({"delay_limit_s": 0.0}, "delay_limit_s=0 must be positive"),
        ({"quality_floor": np.ones(4)}, "quality is for 3 users"),
        ({"least_edge_steps": 2}, "least_edge_steps=2"),
        ({"names": ("one",)}, "must name each of the 3 users"),
    ],
)
def test_a_problem_that_cannot_be_is_refused(changes, words):
    with pytest.raises(PlanningError, match=words):
        random_problem(0, **changes)


def test_a_floor_beyond_reach_says_what_would_do():
    with pytest.raises(PlanningError, match=r"nearest is user \d with 0\.99: give at most 0\.\d+") as caught:
        allocate(random_problem(0, quality_floor=0.99))
    words = str(caught.value).replace(",", "").split()
    check_reach(random_problem(0, quality_floor=float(words[words.index("most") + 1])))


def test_a_delay_limit_beyond_reach_says_what_would_do():
    problem = random_problem(0, delay_limit_s=1e-3)
    with pytest.raises(PlanningError, match="the least that would do is") as caught:
        allocate(problem)
    least = float(str(caught.value).split()[-1])
    check_reach(replace(problem, delay_limit_s=least, quality_floor=0.1))


def test_a_budget_that_cannot_serve_everyone_says_what_would():
    problem = random_problem(0, device_steps=0.0, edge_steps=2, least_edge_steps=1)
    with pytest.raises(PlanningError, match="the least that would do is 3"):
        solve(problem)
    with pytest.raises(PlanningError, match="edge_steps=0, and user 1 cannot draw alone; give at least 3"):
        solve(replace(problem, edge_steps=0))


def test_an_unknown_objective_is_named_with_the_known():
    with pytest.raises(PlanningError, match="'best' is not known; give satisfied-bytes-utility"):
        solve(random_problem(0), "best")
