"""The Pareto front equals its definition."""

import numpy as np
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from fedkd.planning.pareto import nondominated

POINTS = st.integers(1, 3).flatmap(
    lambda size: arrays(float, st.tuples(st.integers(1, 12), st.just(size)), elements=st.integers(0, 4).map(float))
)


@given(POINTS, st.data())
def test_the_front_is_what_nobody_dominates_once(points, data):
    among = data.draw(arrays(bool, len(points)))
    found = nondominated(points, among)
    for i, point in enumerate(points):
        others = points[among]
        beaten = ((others <= point).all(axis=1) & (others < point).any(axis=1)).any()
        twin = (points[:i][among[:i]] == point).all(axis=1).any()
        assert found[i] == (among[i] and not beaten and not twin)


def test_all_points_count_when_nothing_is_said():
    assert nondominated(np.array([[1.0, 2.0], [2.0, 1.0], [2.0, 2.0]])).tolist() == [True, True, False]
