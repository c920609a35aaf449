"""Requests from a JSON file: what they mean, and what is wrong with them in one line."""

import json

import numpy as np
import pytest

from fedkd.planning.denoising import allocate
from fedkd.planning.denoising_requests import EXAMPLE, asked, load
from fedkd.planning.quality import QualitySurface
from fedkd.planning.system import PlanningError

PROFILE = QualitySurface().profile(30)


def changed(user: dict | None = None, **changes) -> dict:
    facts = json.loads(json.dumps(EXAMPLE)) | changes
    facts["users"][0] |= user or {}
    return facts


def test_the_example_can_be_planned():
    found, plans = allocate(asked(EXAMPLE, PROFILE, joint=False).problem)
    assert len(plans) == 3
    assert found.within_budget
    assert plans[0].reasons[0].startswith("ann: ")


def test_together_is_never_worse_than_one_after_the_other():
    apart, together = (allocate(asked(EXAMPLE, PROFILE, joint=joint).problem)[0] for joint in (False, True))
    assert together.key >= apart.key


def test_a_user_s_own_condition_is_kept():
    wish = {"condition": "seg", "resolution": 0.5, "level": 0.41}
    found = asked(changed(wish), PROFILE, joint=False)
    assert found.names(np.zeros(3, int))[0] == "seg, resolution 0.5, quality 0.4"


def test_fields_of_the_edge_are_taken():
    found = asked(changed(edge_steps=33, delay_limit_s=4, least_edge_steps=1), PROFILE, joint=False).problem
    assert (found.edge_steps, found.delay_limit_s, found.least_edge_steps) == (33, 4.0, 1)


@pytest.mark.parametrize(
    ("facts", "words"),
    [
        ([], 'need "users"'),
        ({"users": []}, 'need "users"'),
        ({"users": [3]}, "user 1 is 3"),
        (changed(edge_step=1), "no field 'edge_step' of the requests.*edge_step"),
        (changed({"up_bs": 1}), "user 1: no field 'up_bs'"),
        (changed({"up_bps": "fast"}), "user 1: up_bps='fast' is no number"),
        (changed({"up_bps": 0}), "up_bps=0 must be positive"),
        (changed({"condition": "cany"}), "user 1: no condition 'cany'.*canny"),
        (changed(edge_steps=1.5), "edge_steps=1.5 must be a whole number"),
        (changed(edge_steps=True), "edge_steps=True is no number"),
        ({"users": [{"preference": 0.5}]}, "user 1: quality_floor is missing"),
    ],
)
def test_what_is_wrong_is_said_in_one_line(facts, words):
    with pytest.raises(PlanningError, match=words) as caught:
        asked(facts, PROFILE, joint=False)
    assert "\n" not in str(caught.value)


def test_a_file_that_is_not_json_is_refused(tmp_path):
    (tmp_path / "users.json").write_text("users: 3")
    with pytest.raises(PlanningError, match="cannot be read as JSON"):
        load(tmp_path / "users.json", PROFILE, joint=False)


def test_a_file_that_is_not_there_is_said_in_a_sentence(tmp_path):
    with pytest.raises(PlanningError, match=r"none\.json cannot be read as JSON .*No such file"):
        load(tmp_path / "none.json", PROFILE, joint=False)
