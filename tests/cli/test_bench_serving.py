"""`fedkd bench serving` and `soak` measure what they say, on real servers of the tiny model."""

from __future__ import annotations

import asyncio
import math
import random
import time
from pathlib import Path

import pytest
from PIL import Image

from fedkd.cli.benchmarks import serving, soak_junk
from fedkd.cli.benchmarks.request import Request
from fedkd.cli.benchmarks.serving_equality import DPM, Cut, cuts, differing, every_split
from fedkd.cli.benchmarks.serving_load import LoadError, Measured, Seen, bodies, largest_difference, load, mixed_steps
from fedkd.cli.benchmarks.serving_options import ServingOptions, SoakOptions, read_options
from fedkd.cli.benchmarks.serving_overhead import measure
from fedkd.cli.benchmarks.serving_rival import create_rival
from fedkd.cli.benchmarks.soak_edge import soaked_edge
from fedkd.cli.benchmarks.soak_memory import Sample, growth
from fedkd.cli.benchmarks.soak_metrics import metrics_of
from fedkd.cli.benchmarks.soak_reference import CATALOGUE, References
from fedkd.cli.benchmarks.soak_traffic import Tally, Traffic
from fedkd.recipe import RecipeError
from fedkd.serving.edge import create_app
from tests.serving.running import running


def test_overrides_change_the_options_and_a_wrong_one_names_the_nearest() -> None:
    assert read_options(["steps=4", "device=cuda"], ServingOptions()) == ServingOptions(steps=4, device="cuda")
    for wrong, says in {
        "step=4": "did you mean 'steps'",
        "steps=four": "give a number",
        "steps=1": "out of range",
        "model=sd3": "tiny-sd or sd15",
        "resolution=100": "multiple of 64",
    }.items():
        with pytest.raises(RecipeError, match=says):
            read_options([wrong], ServingOptions())
    with pytest.raises(RecipeError, match="nothing to do"):
        read_options(["minutes=0", "junk=0"], SoakOptions())


def test_sd15_is_made_smaller_on_a_cpu_but_for_what_was_asked() -> None:
    on_cpu = serving.wanted(Request("serving", overrides=["model=sd15", "steps=6"]))
    assert (on_cpu.resolution, on_cpu.steps) == (256, 6)
    assert serving.wanted(Request("serving", overrides=["model=sd15", "device=cuda"])).resolution == 512


def test_the_same_requests_are_asked_of_everybody_with_mixed_steps() -> None:
    assert mixed_steps(8) == [4, 6, 8, 10, 12] and min(mixed_steps(2)) == 2
    assert bodies(9, 8, stream=True, seed=1) == bodies(9, 8, stream=True, seed=1)
    assert len({body["num_inference_steps"] for body in bodies(50, 8, stream=False)}) == 5


def test_edge_and_rival_draw_the_same_pictures_and_a_split_one_is_the_pipelines(
    tiny_folder: Path, tmp_path: Path
) -> None:
    rival_app = create_rival(str(tiny_folder), "cpu", "float32")
    with running(create_app(str(tiny_folder))) as edge, running(rival_app) as rival:
        ours, theirs = str(edge.base_url), str(rival.base_url)
        found = measure(ours, theirs, str(tiny_folder), ServingOptions(steps=2, pictures=2), tmp_path)
        assert found.equal == found.compared == 4
        assert len(found.unsplit) == 2 and math.isfinite(found.share("edge_first"))
        for stream in (False, True):
            asked = bodies(6, 4, stream=stream)
            one, two = load(ours, asked, 3), load(theirs, asked, 3)
            assert len(one.seen) == len(two.seen) == 6
            assert largest_difference(one.seen, two.seen)[0] <= 1
        assert all(0 < each.first_preview_s < each.seconds for each in [*one.seen, *two.seen])
        with pytest.raises(LoadError, match="422"):
            load(ours, [{"prompt": "x", "num_inference_steps": 0}], 1)


def test_serve_and_generate_draw_the_pipelines_picture_in_both_orders_at_every_split_point(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)  # where no quickstart has run
    found = every_split(tmp_path, 1, [(DPM, {"algorithm_type": "sde-dpmsolver++"})])
    assert (found.compared, found.unequal, found.checkpoint) == (10, [], "tiny-sd:v0")


def test_a_picture_that_is_missing_or_another_is_named(tmp_path: Path) -> None:
    planned = list(cuts("DDIMScheduler", {}, 6))
    assert [cut.device_steps for cut in planned] == [0, 1, 3, 5, 6] * 2
    same, other, absent = (tmp_path / name for name in ("same.png", "other.png", "absent.png"))
    Image.new("RGB", (2, 2), "red").save(same)
    Image.new("RGB", (2, 2), "blue").save(other)
    cut = Cut("DDIMScheduler", {}, "edge_first", 1, 6)
    red = bytes([255, 0, 0] * 4)
    named = "DDIMScheduler, edge_first, 1 of 6 steps on the device"
    assert differing([(cut, red)] * 3, [same, other, absent]) == [f"{named}: another picture", f"{named}: no picture"]


def test_percentiles_are_those_of_the_requests() -> None:
    found = Measured([Seen({}, seconds, math.nan, "") for seconds in (1.0, 2.0, 3.0)], wall_s=2.0)
    assert found.pictures_per_s == 1.5 and found.percentile_s(0.5) == 2.0


def test_growth_is_the_fitted_lines_rise_and_unknown_for_few_samples() -> None:
    rising = [Sample(float(at), 1000 + at + (-1) ** at, 1, 1, 0.0) for at in range(101)]
    assert growth(rising, 0, 100) == pytest.approx(0.1, abs=1e-3)
    assert math.isnan(growth(rising, 0, 5))


def test_metrics_are_read_with_and_without_their_labels() -> None:
    found = metrics_of('# TYPE a gauge\na{x="1"} 2\na{x="2"} 3\n')
    assert found["a"] == 5 and found["a{x=2}"] == 3


def test_damaged_hand_offs_differ_from_the_good_one_and_from_each_other() -> None:
    good = b"latents F32 " * 50
    made = [soak_junk.damaged(random.Random(seed), good) for seed in range(60)]
    assert len(set(made)) > 30 and sum(each != good for each in made) > 40


def test_soaked_edges_swap_versions_whose_pictures_differ_and_every_picture_is_its_versions(tmp_path: Path) -> None:
    with soaked_edge(tmp_path, ["user-0", "user-1", "junk"], swaps=1, lifetime_s=5) as edge:
        references, tally = References(edge.folders.values()), Tally()
        one, two = (references.picture(folder, CATALOGUE[0]) for folder in edge.folders.values())
        assert abs(one - two).max() > 8  # else a picture of the wrong version would pass for right
        edge.publish()
        traffic = Traffic(edge, references, tally, vanish=0.3, wrong=0.3)
        asyncio.run(traffic.run(2, time.monotonic() + 2.5))
        assert not tally.wrong and not tally.failed and not tally.let_in and not tally.stolen
        assert sum(tally.pictures.values()) and tally.wrong_tokens
        junk = soak_junk.JunkTally()
        soak_junk.hand_offs(edge, 25, 0, junk)
        assert junk.sent == 25 and not junk.failed and not junk.untyped and edge.alive
