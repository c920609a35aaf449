"""Choosing a condition and its compression: the fitted surface, Algorithms 1-2, and the exact choice."""

import json
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fedkd.planning.condition import ConditionProblem, cheapest, choose, pareto_front, search_path, vce
from fedkd.planning.quality import CONDITIONS, ConditionProfile, QualitySurface
from fedkd.planning.system import PlanningError

PROFILE = QualitySurface().profile(30)


def problem(preference=0.7, floor=0.7, profile=PROFILE, up_bps=12e6, **changes) -> ConditionProblem:
    return ConditionProblem(profile, preference, floor, up_bps, **changes)


def test_the_surface_is_table_i_s_grid():
    assert len(PROFILE.conditions) == 4 * 8 * 9
    assert PROFILE.size_bytes.max() == 88_000
    assert (PROFILE.perceptual[:, 0] == 0).all()


@pytest.mark.parametrize(
    ("condition", "scores"), [("canny", (0.84, 0.62)), ("hed", (0.86, 0.64)), ("seg", (0.63, 0.84))]
)
def test_an_uncompressed_condition_tends_to_its_ceiling(condition, scores):
    surface = QualitySurface()
    found = surface.scores(condition, 1.0, 1.0, np.array(500))
    # c = 0 lies a little above q∞'s reference of c = .2
    drops = [1 + drop * 0.04 / 0.6 for drop in surface.drops]
    assert found == pytest.approx([1.02 * score * more for score, more in zip(scores, drops, strict=True)])


def test_steps_gain_more_where_compression_took_more():
    """VCE Fig. 4: 20 steps instead of 5 gain about 12% at 20% compression and 19% at 80%."""
    surface = QualitySurface()

    def gain(compression: float) -> float:
        # alpha = beta, so that c = 1 - alpha for every weight
        five, twenty = surface.scores("canny", 1 - compression, 1 - compression, np.array([5, 20]))[1]
        return twenty / five - 1

    assert gain(0.2) == pytest.approx(0.12, abs=0.015)
    assert gain(0.8) == pytest.approx(0.19, abs=0.03)


def test_full_compression_costs_what_the_paper_measured():
    scores = [QualitySurface().scores("canny", 1 - c, 1 - c, np.array(20)) for c in (0.2, 0.8)]
    drops = [1 - scores[1][axis] / scores[0][axis] for axis in (0, 1)]
    assert drops == pytest.approx([0.12, 0.10], abs=0.015)


def test_resolution_matters_for_canny_and_quality_for_depth():
    surface, steps = QualitySurface(), np.array(20)
    small, coarse = [surface.scores("canny", *pair, steps)[0] for pair in ((0.25, 1.0), (1.0, 0.25))]
    assert small < coarse
    small, coarse = [surface.scores("depth", *pair, steps)[1] for pair in ((0.25, 1.0), (1.0, 0.25))]
    assert coarse < small


@settings(max_examples=50, deadline=None)
@given(st.lists(st.tuples(st.integers(0, 5), st.integers(0, 5)), min_size=1, max_size=20))
def test_the_front_holds_what_nothing_beats(points):
    score, size = np.array(points, float).T
    front = pareto_front(score, size)
    for i in range(len(points)):
        beaten = any(score[j] > score[i] and size[j] < size[i] for j in range(len(points)))
        assert front[i] == (not beaten)


def test_canny_raises_resolution_first_and_depth_quality_first():
    for name, score, first in (("canny", PROFILE.perceptual, "resolution"), ("depth", PROFILE.prompt, "level")):
        here = np.array([each == name for each in PROFILE.conditions])
        front = np.zeros(len(here), bool)
        front[here] = pareto_front(score[here, 20], PROFILE.size_bytes[here])
        values = getattr(PROFILE, first)[search_path(PROFILE, front, name)]
        other = getattr(PROFILE, "level" if first == "resolution" else "resolution")[search_path(PROFILE, front, name)]
        rising = values < values.max()
        assert (np.diff(values) >= 0).all()
        assert (other[rising] == other[0]).all()


def test_preference_decides_the_candidates():
    chosen = vce(problem([0.9, 0.1], 0.7))
    assert PROFILE.conditions[chosen[0]] in ("canny", "hed")
    assert PROFILE.conditions[chosen[1]] in ("depth", "seg")


@settings(max_examples=60, deadline=None)
@given(preference=st.floats(0, 1), floor=st.floats(0.3, 0.85), up_bps=st.floats(1e5, 1e8), steps=st.integers(1, 30))
def test_the_exact_choice_is_never_larger_than_the_paper_s(preference, floor, up_bps, steps):
    asked = problem(preference, floor, up_bps=up_bps, steps=steps)
    quality, delay = asked.quality[0], asked.delay_s[0]
    ours, theirs = int(cheapest(asked)[0]), int(vce(asked)[0])
    meets = (quality >= floor) & (delay <= asked.delay_limit_s)
    if meets.any():
        assert meets[ours]
        assert PROFILE.size_bytes[ours] == PROFILE.size_bytes[meets].min()
    if meets[theirs]:
        assert PROFILE.size_bytes[ours] <= PROFILE.size_bytes[theirs]


def worths(asked: ConditionProblem) -> list[tuple[bool, bool, float, float]]:
    """Each variant's (keeps the limit, reaches the floor too, fewer bytes, quality): what counts, in this order."""
    quality, size, timely = asked.quality[0], PROFILE.size_bytes, asked.delay_s[0] <= asked.delay_limit_s
    enough = timely & (quality >= asked.quality_floor[0])
    fewer = np.where(enough | ~timely, -size, 0.0)  # short of the floor, quality alone counts
    return list(zip(timely.tolist(), enough.tolist(), fewer.tolist(), quality.tolist(), strict=True))


asked_for = given(
    preference=st.floats(0, 1), floor=st.floats(0.3, 0.99), up_bps=st.floats(1e4, 1e8), limit=st.floats(1e-3, 1)
)


@settings(max_examples=20, deadline=None)
@asked_for
def test_nothing_in_the_profile_beats_the_exact_choice(preference, floor, up_bps, limit):
    asked = problem(preference, floor, up_bps=up_bps, delay_limit_s=limit)
    every = worths(asked)
    mine, best = every[int(cheapest(asked)[0])], max(every)
    assert mine[:3] == best[:3]
    assert not mine[0] or mine == best


@settings(max_examples=20, deadline=None)
@asked_for
def test_more_bandwidth_or_time_never_makes_the_choice_worse(preference, floor, up_bps, limit):
    asked = problem(preference, floor, up_bps=up_bps, delay_limit_s=limit)
    before = worths(asked)[int(cheapest(asked)[0])]
    for richer in (replace(asked, up_bps=3 * up_bps), replace(asked, delay_limit_s=3 * limit)):
        assert worths(richer)[int(cheapest(richer)[0])] >= before


@pytest.mark.parametrize(("limit", "value"), [("floor", 0.95), ("delay_limit_s", 1e-6)])
def test_the_limit_that_an_error_names_can_be_met(limit, value):
    with pytest.raises(PlanningError) as caught:
        choose(problem(**{limit: value}))
    words = str(caught.value).replace(",", "").split()
    would_do = float(words[-1] if limit == "delay_limit_s" else words[words.index("most") + 1])
    choose(problem(**{limit: would_do}))


def test_a_plan_names_the_condition_and_its_size():
    chosen, plans = choose(problem([0.9, 0.1], 0.65))
    assert plans[0].condition == PROFILE.name(int(chosen[0]))
    assert plans[0].reasons[0].endswith("kB, the smallest that is good enough")
    assert plans[0].quality >= 0.65


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"up_bps": 0.0}, "up_bps=0 must be positive"),
        ({"preference": 1.5}, "must lie in 0..1"),
        ({"preference": float("nan")}, "must lie in 0..1"),
        ({"preference": []}, "names no user"),
        ({"floor": float("nan")}, "quality_floor holds NaN"),
        ({"floor": 0.95}, r"quality_floor=0\.95 .*give at most 0\.\d+"),
        ({"extraction_s": -1.0}, "extraction_s=-1 must be 0 or more"),
        ({"rest_s": float("nan")}, "rest_s=nan must be 0 or more"),
        ({"delay_weight": -0.1}, "delay_weight=-0.1 must be 0 or more"),
        ({"steps": 99}, "steps=99 is not in the profile; give 1 to 30"),
        ({"delay_limit_s": 1e-6}, "the least that would do is"),
        ({"delay_limit_s": -1.0}, "delay_limit_s=-1.0 must be positive"),
        ({"floor": [0.5, 0.6, 0.7]}, "one a user"),
    ],
)
def test_a_question_without_an_answer_is_refused(changes, words):
    with pytest.raises(PlanningError, match=words):
        choose(problem(**changes))


def test_a_profile_travels_as_json(tmp_path):
    small = PROFILE.only(np.arange(3))
    small.save(tmp_path / "profile.json", {"scorer": "ssim"})
    again = ConditionProfile.load(tmp_path / "profile.json")
    assert again.conditions == small.conditions
    assert (again.perceptual == small.perceptual).all()
    assert json.loads((tmp_path / "profile.json").read_text())["about"] == {"scorer": "ssim"}


def test_a_profile_that_is_not_there_is_said_in_a_sentence(tmp_path):
    with pytest.raises(PlanningError, match=r"none\.json is no profile of conditions .*No such file"):
        ConditionProfile.load(tmp_path / "none.json")


def test_a_profile_with_a_level_of_0_is_refused_by_its_file(tmp_path):
    PROFILE.only(np.arange(3)).save(tmp_path / "zero.json")
    facts = json.loads((tmp_path / "zero.json").read_text()) | {"level": [0.0, 0.5, 1.0]}
    (tmp_path / "zero.json").write_text(json.dumps(facts))
    with pytest.raises(PlanningError, match=r"zero\.json .*level=0 to 1 must lie in 0\.\.1"):
        ConditionProfile.load(tmp_path / "zero.json")


@pytest.mark.parametrize("text", ["", "[]", "{}", '{"conditions": 3}', "\xff"])
def test_a_file_that_is_no_profile_is_refused(tmp_path, text):
    (tmp_path / "profile.json").write_bytes(text.encode("latin-1"))
    with pytest.raises(PlanningError, match="is no profile of conditions"):
        ConditionProfile.load(tmp_path / "profile.json")


def test_a_profile_with_nan_is_refused():
    with pytest.raises(PlanningError, match="perceptual of the profile holds NaN"):
        ConditionProfile(("canny",), [1.0], [1.0], [10], [[0.0, float("nan")]], [[0.0, 0.5]])


def test_the_surface_checks_its_fields():
    with pytest.raises(PlanningError, match="scale=0 must be positive"):
        QualitySurface(scale=0)
    with pytest.raises(PlanningError, match="must name the same conditions"):
        QualitySurface(resolution_weights={"canny": 0.8})


def test_all_four_conditions_are_in_the_surface():
    assert set(QualitySurface().ceilings) == set(CONDITIONS)
