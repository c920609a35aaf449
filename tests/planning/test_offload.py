"""OQC's P1: exact values, proofs that hold, the paper's own method and its gaps, and one-line errors."""

import itertools
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from fedkd.planning.offload import METHODS, OffloadProblem, OffloadSolution, front, oqc_problem, solve, steps_given
from fedkd.planning.offload_dual import solve_dual
from fedkd.planning.offload_sca import solve_sca
from fedkd.planning.system import PlanningError

EXACT = {
    (30, 100): -17.753943,
    (30, 200): -18.323904,
    (30, 300): -18.786730,
    (1000, 100): -590.554382,
    (1000, 200): -610.227655,
    (1000, 300): -625.738729,
}
SCA_GAPS = {"half": (4.00, 0.39, 0.99), "random": (12.6, 2.9, 2.7)}  # percent, N = 30, S_e = 100, 200, 300


def problem_of(users: int, budget: int) -> OffloadProblem:
    return oqc_problem(users, budget * users // 30)


def assert_within_limits(solution: OffloadSolution) -> None:
    problem, steps = solution.problem, solution.steps
    assert solution.edge_steps <= problem.edge_budget_steps
    assert (steps <= np.where(solution.at_edge, problem.edge_most_steps, problem.device_most_steps)).all()
    assert (steps >= problem.least_steps).all()


@st.composite
def problems(draw, users: int = 8) -> OffloadProblem:
    n = draw(st.integers(1, users))
    decimals = draw(st.sampled_from([0, 1, 6]))  # few decimals make users alike, so that choices tie
    rates = st.lists(st.floats(0, 2).map(lambda rate: round(rate, decimals)), min_size=n, max_size=n)
    most = st.lists(st.integers(0, 12), min_size=n, max_size=n)
    try:
        return OffloadProblem(
            np.array(draw(rates)),
            np.array(draw(rates)),
            draw(st.integers(0, 60)),
            device_most_steps=np.array(draw(most)),
            edge_most_steps=np.array(draw(most)),
            least_steps=draw(st.integers(0, 3)),
            edge_hz=np.array(draw(st.lists(st.floats(1e9, 2e10), min_size=n, max_size=n))),
            device_step_s=draw(st.floats(1e-4, 0.2)),
            cost_weight=draw(st.floats(0, 1)),
        )
    except PlanningError:
        assume(False)
        raise


def brute_force(problem: OffloadProblem) -> float:
    """The least cost over every choice of every user."""
    device, edge = problem.costs("device"), problem.costs("edge")
    menus = []
    for n in range(problem.users):
        menu = [(0, value) for value in device[:, n] if np.isfinite(value)]
        menus.append([*menu, *((s, value) for s, value in enumerate(edge[:, n]) if np.isfinite(value))])
    choices = itertools.product(*menus)
    return min(
        sum(value for _, value in choice)
        for choice in choices
        if sum(weight for weight, _ in choice) <= problem.edge_budget_steps
    )


@pytest.mark.parametrize("method", ["auto", "dual", "dp"])
@pytest.mark.parametrize(("size", "value"), EXACT.items())
def test_the_optimum_is_the_known_one(size, value, method):
    found = solve(problem_of(*size), method)
    assert found.objective == pytest.approx(value, abs=1e-6)
    assert found.gap == 0
    assert_within_limits(found)


@pytest.mark.parametrize("size", [(30, 100), (30, 200), (30, 300), (1000, 200)])
def test_milp_and_dp_agree(size):
    found = solve(problem_of(*size), "milp")
    assert found.objective == pytest.approx(solve(problem_of(*size), "dp").objective, abs=1e-6)
    assert_within_limits(found)


@pytest.mark.parametrize("start", SCA_GAPS)
def test_sca_stops_short_of_the_optimum_by_the_known_gaps(start):
    for budget, gap in zip((100, 200, 300), SCA_GAPS[start], strict=True):
        exact, found = EXACT[30, budget], solve_sca(problem_of(30, budget), start=start, inner=30)
        assert 100 * (found.objective - exact) / abs(exact) == pytest.approx(gap, abs=0.06)
        assert found.gap is None
        assert_within_limits(found)


def test_sca_stops_short_for_a_thousand_users_too():
    exact, found = EXACT[1000, 200], solve_sca(problem_of(1000, 200), inner=20)
    assert 100 * (found.objective - exact) / abs(exact) == pytest.approx(0.53, abs=0.06)


def test_sca_loses_by_its_choice_of_users_too():
    found = solve_sca(problem_of(30, 300), inner=20)
    better = steps_given(found)
    assert (better.at_edge == found.at_edge).all()
    assert EXACT[30, 300] < better.objective < found.objective
    assert_within_limits(better)


def test_a_hundred_thousand_users_are_within_1e_8_of_a_proven_bound():
    found = solve(oqc_problem(100_000), "dual")
    assert found.gap <= 1e-8
    assert (found.objective - found.dual_bound) / abs(found.objective) <= 1e-8
    assert_within_limits(found)


def test_users_who_are_all_alike_have_a_bound_too():
    rates = np.full(3000, 0.2)
    found = solve_dual(OffloadProblem(rates, rates, 20_001))
    assert found.lower_bound <= found.objective and found.gap < 1e-5
    assert_within_limits(found)


@given(problems(users=3))
@settings(max_examples=40, deadline=None)
def test_the_optimum_is_what_trying_everything_finds(problem):
    value = brute_force(problem)
    for method in ("auto", "dp"):
        assert solve(problem, method).objective == pytest.approx(value, abs=1e-9)


@given(problems())
@settings(max_examples=60, deadline=None)
def test_dual_below_exact_below_feasible_and_no_limit_is_violated(problem):
    exact, found = solve(problem, "dp"), solve(problem, "dual")
    assert found.dual_bound <= found.lower_bound + 1e-9
    assert found.lower_bound <= exact.objective + 1e-9
    assert exact.objective <= found.objective + 1e-9
    assert solve(problem).objective == pytest.approx(exact.objective, abs=1e-9)
    for each in (exact, found):
        assert_within_limits(each)
        assert each.objective == pytest.approx(_recomputed(each), abs=1e-9)


def _recomputed(solution: OffloadSolution) -> float:
    device, edge = solution.problem.costs("device"), solution.problem.costs("edge")
    menus = zip(solution.at_edge, solution.steps, strict=True)
    return float(sum((edge if there else device)[steps, n] for n, (there, steps) in enumerate(menus)))


@given(problems(), st.floats(1e-9, 1e9))
@settings(max_examples=40, deadline=None)
def test_costs_of_any_size_are_planned_as_well(problem, scale):
    weights = {name: getattr(problem, name) * scale for name in ("cost_weight", "utility_weight")}
    scaled = replace(problem, **weights, device_step_s=problem.device_step_s * scale)
    exact, found = solve(scaled, "dp"), solve(scaled, "dual")
    assert_within_limits(found)
    size = max(1.0, float(np.abs(exact.parts()["delay_s"]).max())) * max(1.0, scale) * 1e-9
    assert found.lower_bound - size <= exact.objective <= found.objective + size
    assert found.objective <= exact.objective + size or found.gap > 0


@given(problems(), st.integers(0, 2**32 - 1))
@settings(max_examples=25, deadline=None)
def test_the_optimum_is_never_beaten_by_random_search(problem, seed):
    value = solve(problem).objective
    for k in range(10):
        found = solve(problem, "random", seed + k)
        assert_within_limits(found)
        assert value <= found.objective + 1e-9


@given(problems())
@settings(max_examples=10, deadline=None)
def test_sca_violates_no_limit_and_never_beats_the_optimum(problem):
    value = solve(problem).objective
    for start in SCA_GAPS:
        found = solve_sca(problem, start=start, inner=5, outer=4)
        assert_within_limits(found)
        assert value <= found.objective + 1e-9


@given(problems(), st.integers(1, 40), st.floats(1, 10))
@settings(max_examples=25, deadline=None)
def test_more_budget_speed_or_room_is_never_worse(problem, more, faster):
    value = solve(problem).objective + 1e-9
    assert solve(replace(problem, edge_budget_steps=problem.edge_budget_steps + more)).objective <= value
    assert solve(replace(problem, device_step_s=problem.device_step_s / faster)).objective <= value
    assert solve(replace(problem, edge_step_s=problem.edge_step_s / faster)).objective <= value
    assert solve(replace(problem, edge_most_steps=problem.edge_most_steps + more)).objective <= value


def test_the_front_falls_as_the_budget_grows():
    values = [each.objective for each in front(oqc_problem(30), range(0, 700, 50))]
    assert all(later <= earlier for earlier, later in itertools.pairwise(values))


def test_a_plan_a_user_says_where_and_what_it_costs():
    found = solve(oqc_problem(30, 100))
    plans = found.plans("edge-1")
    assert [each.num_inference_steps for each in plans] == found.steps.tolist()
    assert [each.device_steps == 0 for each in plans] == found.at_edge.tolist()
    there = int(np.argmax(found.at_edge))
    assert plans[there].edge == "edge-1"
    assert plans[there].delay_s == pytest.approx(found.steps[there] / 1000)
    assert plans[there].energy_j == pytest.approx(10 * found.steps[there] / 1000)


def test_power_in_hz_instead_of_ghz_offloads_nobody():
    assert not solve(oqc_problem(30, 300, device_power=1e-2, edge_power=1e-2)).at_edge.any()


def test_a_device_that_cannot_run_the_fewest_steps_goes_to_the_edge():
    found = solve(oqc_problem(3, 12, device_most_steps=np.array([10, 2, 10]), least_steps=4))
    assert found.at_edge[1]
    assert_within_limits(found)


@pytest.mark.parametrize(
    ("wrong", "named"),
    [
        ({"error_decay": []}, "error_decay has shape"),
        ({"error_decay": [0.1, float("nan")]}, r"error_decay\[1\]=nan"),
        ({"utility_growth": [0.1, -1]}, r"utility_growth\[1\]=-1"),
        ({"utility_growth": [0.1, 0.1, 0.1]}, "utility_growth has shape"),
        ({"utility_growth": 0.1}, "utility_growth is one number"),
        ({"device_step_s": 0}, "device_step_s=0"),
        ({"edge_step_s": -1}, "edge_step_s=-1"),
        ({"edge_hz": [1e9, 0]}, r"edge_hz\[1\]=0"),
        ({"device_hz": "fast"}, "device_hz='fast'"),
        ({"device_power": float("inf")}, "device_power=inf"),
        ({"edge_budget_steps": -1}, "edge_budget_steps=-1"),
        ({"edge_budget_steps": 1.5}, "edge_budget_steps=1.5"),
        ({"edge_budget_steps": float("nan")}, "edge_budget_steps=nan"),
        ({"cost_weight": float("nan")}, "cost_weight=nan"),
        ({"utility_weight": -1}, "utility_weight=-1"),
        ({"device_most_steps": 0, "edge_most_steps": 0}, "leave no step"),
        ({"least_steps": 25}, "give at most 20"),
        ({"least_steps": 15, "edge_budget_steps": 20}, "edge_budget_steps=20 is too few for the 2 users.*at least 30"),
    ],
)
def test_a_problem_that_cannot_be_is_named_in_one_line(wrong, named):
    fields = {"error_decay": [0.1, 0.2], "utility_growth": [0.1, 0.2], "edge_budget_steps": 20}
    with pytest.raises(PlanningError, match=named) as caught:
        OffloadProblem(**(fields | wrong))
    assert "\n" not in str(caught.value)


def test_methods_and_sizes_that_cannot_be_are_named():
    with pytest.raises(PlanningError, match="method='magic' is not known; give auto, dual"):
        solve(oqc_problem(2), "magic")
    with pytest.raises(PlanningError, match="users=0"):
        oqc_problem(0)
    with pytest.raises(PlanningError, match="too large for method dp"):
        solve(oqc_problem(100_000), "dp")
    with pytest.raises(PlanningError, match="too many for method milp"):
        solve(oqc_problem(100_000), "milp")
    with pytest.raises(PlanningError, match="start='edge'"):
        solve_sca(oqc_problem(2), start="edge")


@pytest.mark.parametrize("method", METHODS)
def test_every_method_can_do_one_user_without_an_edge(method):
    found = solve(oqc_problem(1, 0), method)
    assert not found.at_edge.any() and found.steps[0] > 0
