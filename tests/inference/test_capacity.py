"""The rows of a forward grow as long as they pay and fit."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from fedkd.inference import capacity
from fedkd.inference.capacity import Capacity, free_bytes
from tests.inference.pictures import WAIT_S, picture, running, together

CPU = torch.device("cpu")


def climb(
    monkeypatch: pytest.MonkeyPatch,
    seconds_of: Any,
    forwards: int = 20,
    learned: Any = None,
    layer: Any = torch.nn.Identity(),
) -> Capacity:
    """Forwards as large as allowed, on a clock that says how long each takes."""
    learned, now = learned or Capacity(CPU), 0.0
    with monkeypatch.context() as patched:
        patched.setattr(capacity.time, "perf_counter", lambda: now)
        for _ in range(forwards):
            rows = max(2, learned.rows("form"))
            with learned.measured("form", layer, rows):
                layer(torch.zeros(rows, 64, 1))
                now += seconds_of(rows)
    return learned


@pytest.mark.parametrize(
    ("seconds_of", "expected"),
    [
        (lambda rows: 1.0, 64),  # a forward costs the same whatever its rows
        (lambda rows: 1.0 * rows, 2),  # nothing is gained
        (lambda rows: max(1.0, rows / 8), 8),  # full at eight
    ],
)
def test_rows_grow_as_long_as_they_pay(monkeypatch: pytest.MonkeyPatch, seconds_of: Any, expected: int) -> None:
    learned = climb(monkeypatch, seconds_of)
    assert learned.rows("form") == expected
    assert learned.rows("another form") == 1


def test_a_size_that_did_not_pay_is_tried_again_later(monkeypatch: pytest.MonkeyPatch) -> None:
    learned = climb(monkeypatch, lambda rows: 1.0 * rows)
    climb(monkeypatch, lambda rows: 1.0, capacity.AGAIN, learned)
    assert learned.rows("form") == 64


def test_free_memory_bounds_the_rows(monkeypatch: pytest.MonkeyPatch) -> None:
    free = free_bytes(CPU)
    assert free > 1 << 20
    layer = torch.nn.Sequential(torch.nn.Linear(1, 4096), torch.nn.ReLU()).requires_grad_(False)
    row_bytes = capacity.INSIDE * 2 * 64 * 4096 * 4
    monkeypatch.setattr(capacity, "free_bytes", lambda _: 6.5 * row_bytes)
    learned = climb(monkeypatch, lambda rows: 1.0, layer=layer)
    assert learned.rows("form") == int(capacity.MEMORY_SHARE * 6.5)


def test_after_running_out_of_memory_half_as_many_are_the_most() -> None:
    fixed = Capacity(CPU, max_rows=16)
    assert fixed.rows("form") == 16
    fixed.out_of_memory("form", 12)
    assert fixed.rows("form") == 6


def test_traffic_calibrates_the_engine(tiny_pipeline: Any) -> None:
    with running(tiny_pipeline.unet) as engine:
        with together(engine):
            tickets = [engine.submit("m", picture(tiny_pipeline, seed, steps=6)) for seed in range(8)]
        for ticket in tickets:
            ticket.future.result(WAIT_S)
        (seconds,) = engine.calibration("m").values()
        assert {2, 4} <= set(seconds) and all(value > 0 for value in seconds.values())
        assert engine.stats()["largest_rows"] >= 4
