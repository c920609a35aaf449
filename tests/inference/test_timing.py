"""What is measured of a machine is what profiles are made of."""

from __future__ import annotations

from pathlib import Path

import pytest

from fedkd.inference.timing import measured_seconds, median_of
from fedkd.models.pipeline import load_pipeline
from fedkd.planning.machines import Timings


def test_a_machine_s_seconds_make_timings(tiny_folder: Path) -> None:
    pipe = load_pipeline(str(tiny_folder), device="cpu", dtype="float32", scheduler="DDIMScheduler")
    timings = Timings(model="tiny", **measured_seconds(pipe, repeats=2))
    assert timings.step_s > 0 and timings.message_s > 0


def test_the_first_call_warms_up_and_does_not_count() -> None:
    calls: list[int] = []
    assert median_of(lambda: calls.append(1), 3) >= 0
    assert len(calls) == 4


def test_no_repeats_are_an_error() -> None:
    with pytest.raises(ValueError, match="repeats=0"):
        measured_seconds(None, repeats=0)
