"""`fedkd bench scale`: bounds hold for linear growth, and fail when the cloud's work grows too fast."""

from __future__ import annotations

import json
from dataclasses import asdict, replace
from pathlib import Path

import pytest

from fedkd.cli.benchmarks.request import Request
from fedkd.cli.benchmarks.scale import QUICK_EDGES, QUICK_PICTURES, QUICK_USERS, exponent, place_of, run, steepest
from fedkd.cli.benchmarks.scale_plan import Law, law_of
from fedkd.cli.benchmarks.scale_run import Cost, Size

FIXED, MESSAGE, PICTURE = 2.0, 0.03, 0.01
SIZES = list(dict.fromkeys((*QUICK_PICTURES, *QUICK_USERS, *QUICK_EDGES)))


def made_up(size: Size, *, growth: float = 1.0, peak_bytes: int = 800_000_000) -> Cost:
    """A cost that follows a law: fixed, by messages, by pictures to the power of `growth`."""
    messages = 2 * size.users + 4 * size.edges
    cpu = {"synthesise": MESSAGE * messages, "distil": PICTURE * size.total**growth, "publish": FIXED}
    moved = {"up": 1, "down": 1, "registry": 1, "peak_bytes": peak_bytes, "disk_bytes": 1}
    return Cost(size, cpu, 1.0, 1.0, messages, **moved)


def kept(costs: list[Cost], out: Path) -> Request:
    """A request whose federations have all been measured."""
    request = Request("scale", quick=True, out=out)
    for cost in costs:
        path = place_of(cost.size, request)
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(json.dumps(asdict(cost)))
    return request


def test_laws_and_exponents_are_those_of_the_costs() -> None:
    found = law_of([made_up(size) for size in SIZES], lambda cost: cost.cloud_s)
    assert found.of(10**6, 10**3, 10**7) == pytest.approx(FIXED + MESSAGE * (2 * 10**6 + 4 * 10**3) + PICTURE * 10**7)
    assert Law(1.0, 2.0, 3.0, 4.0).of(10, 100, 1000) == 1 + 20 + 300 + 4000
    assert exponent([10, 100, 1000], [3 * n**0.7 for n in (10, 100, 1000)]) == pytest.approx(0.7)
    sizes = [10, 100, 1000, 10000]
    late = [100 + 1e-4 * n**2 for n in sizes]  # a square that a fixed cost hides when all sizes are taken together
    assert exponent(sizes, late) < 0.8 and steepest(sizes, late) == pytest.approx(1.7, abs=0.1)


def test_all_bounds_hold_for_work_that_is_linear_in_the_pictures(tmp_path: Path) -> None:
    result = run(kept([made_up(size) for size in SIZES], tmp_path))
    assert len(result.shows) == 4 and all(shown.holds for shown in result.shows)
    assert set(result.tables[0].rows) == {size.name for size in SIZES}


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda cost: made_up(cost.size, growth=2.5), "synthetic pictures"),
        (lambda cost: replace(cost, peak_bytes=10**9 + 10**8 * cost.size.users), "the server's memory"),
        (lambda cost: replace(cost, cpu_s=cost.cpu_s | {"distil": 0.1 * cost.size.users}), "distil and publish"),
        (lambda cost: replace(cost, cpu_s=cost.cpu_s | {"synthesise": 0.001 * cost.messages**2}), "asking nodes"),
    ],
)  # fmt: skip
def test_a_bound_fails_when_its_cost_grows_too_fast(change: object, words: str, tmp_path: Path) -> None:
    assert callable(change)
    result = run(kept([change(made_up(size)) for size in SIZES], tmp_path))
    failed = [shown.what for shown in result.shows if not shown.holds]
    assert any(words in what for what in failed), result.shows
