"""`fedkd bench conditions` sends what it says, and its users are the same for every method."""

from __future__ import annotations

import numpy as np

from fedkd.cli.benchmarks.conditions import COLUMNS, OURS, SERVICE, Measured, _size, pictures, play
from fedkd.planning.quality import QualitySurface


def test_sources_are_the_same_for_a_seed_and_large() -> None:
    (one, *_), captions = pictures(0, 2)
    again, _ = pictures(0, 2)
    assert one.size == (512, 512) and again[0].tobytes() == one.tobytes() and captions[0].startswith("a ")
    assert 3_000 < _size(one, "JPEG", quality=90) < 100_000


def test_every_method_is_played_and_as_a_service_sends_whole_pictures() -> None:
    found = play(Measured(QualitySurface().profile(40), 9_000, 2_000, 512), seed=0, rounds=3)
    assert all(list(figures) == COLUMNS and np.isfinite(list(figures.values())).all() for figures in found.values())
    assert (found[SERVICE]["bytes up"], found[SERVICE]["bytes down"]) == (9_000, 2_000)
    assert found[OURS]["satisfied %"] >= found["OQC+"]["satisfied %"]
    assert found[OURS]["bytes down"] <= 2_000
