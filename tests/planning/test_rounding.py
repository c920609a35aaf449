"""Limits as text: never on the side on which they cannot be met."""

from hypothesis import given, settings
from hypothesis import strategies as st

from fedkd.planning.rounding import above, below

VALUES = st.floats(1e-9, 1e12)


@settings(max_examples=50, deadline=None)
@given(VALUES)
def test_what_is_above_is_no_less_and_near(value):
    assert value <= float(above(value)) <= value * 1.0011


@settings(max_examples=50, deadline=None)
@given(VALUES)
def test_what_is_below_is_no_more_and_near(value):
    assert value * 0.9989 <= float(below(value)) <= value


def test_nothing_stays_nothing():
    assert (above(0.0), below(0.0), above(-2.0)) == ("0", "0", "-2")
