"""Plans that nobody could carry out are refused, and JSON says None for what is not predicted."""

import json

import pytest

from fedkd.planning.plan import Plan
from fedkd.planning.system import PlanningError


def test_a_plan_as_json_says_none_for_what_is_not_predicted():
    facts = Plan("e", 10, 4, "edge_first").facts()
    assert facts["delay_s"] is None and facts["edge_steps"] == 6
    assert json.loads(json.dumps(facts, allow_nan=False)) == facts


@pytest.mark.parametrize(
    ("wrong", "named"),
    [
        (("e", 0, 0, "edge_first"), "num_inference_steps=0"),
        (("e", 5, 6, "edge_first"), "device_steps=6"),
        (("e", 5, -1, "edge_first"), "device_steps=-1"),
        (("e", 5, 1, "first"), "order='first'"),
    ],
)
def test_a_plan_that_cannot_be_is_refused(wrong, named):
    with pytest.raises(PlanningError, match=named):
        Plan(*wrong)
