"""The live dispatch benchmark's clients send at their times and count what came; its bounds can fail."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from fedkd.cli.benchmarks.dispatch_live import OURS, RIVALS, _shows
from fedkd.cli.benchmarks.dispatch_live_load import Fate, Wanted, arrivals, drawn_by, send_all
from tests.serving.test_cluster import edges


def test_arrivals_are_drawn_by_seed_with_popular_models_first() -> None:
    found = arrivals(4000, 10.0, ["a", "b", "c"], 4, seed=1)
    assert found == arrivals(4000, 10.0, ["a", "b", "c"], 4, seed=1) != arrivals(4000, 10.0, ["a", "b", "c"], 4, seed=2)
    assert found[-1].at_s == pytest.approx(400, rel=0.1)
    share = np.bincount(["abc".index(each.model) for each in found]) / len(found)
    assert share == pytest.approx(np.array([6, 3, 2]) / 11, abs=0.03)
    assert all(sorted(each.doors) == [0, 1, 2, 3] for each in found[:50])


def test_clients_get_one_answer_each_also_where_their_edge_is_down(tiny_folder: Path) -> None:
    with edges(tiny_folder, 2, dispatch="greedy") as found:
        urls = ["http://127.0.0.1:9", *(edge.url for edge in found)]
        fates = send_all(urls, [Wanted(n, 0.02 * n, "tiny", 2, (n % 3, 1, 2)) for n in range(6)])
    assert [len(fate.answers) for fate in fates] == [1] * 6
    assert sum(fate.broken for fate in fates) == 2
    assert sum(drawn_by(fates, urls)) == pytest.approx(1)


@pytest.mark.parametrize(
    ("answers", "sent", "delay_s", "failing"),
    [(["x"], 1, 1.0, 0), ([], 1, 1.0, 1), (["x"], 2, 1.0, 1), (["y"], 1, 1.0, 1), (["x"], 1, 3.0, 4)],
    ids=["as promised", "lost", "twice", "another picture", "slower"],
)
def test_the_bounds_can_fail(answers: list[str], sent: int, delay_s: float, failing: int) -> None:
    fates = {rule: [Fate(Wanted(0, 0.0, "a", 2, (0,)), ["x"], 2.0)] for rule in RIVALS}
    fates = {OURS: [Fate(Wanted(0, 0.0, "a", 2, (0,)), answers, delay_s, sent=sent)], **fates}
    assert sum(not shown.holds for shown in _shows(fates)) == failing
