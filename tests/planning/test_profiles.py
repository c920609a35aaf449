"""Profiles: what ships can be read, what is measured comes back, what is wrong is named."""

import json
import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fedkd.planning.machines import Device, Link, PlanningError, Timings
from fedkd.planning.profiles import Profile, facts_of, load_profile, names, parsed, save_profile

SECONDS = st.floats(1e-6, 100)
PROFILES = st.builds(
    Profile,
    st.builds(
        Device,
        st.just("laptop"),
        st.floats(1e6, 1e16),
        st.floats(0, 1000),
        memory_bytes=st.just(math.inf) | st.floats(1e6, 1e12),
        held=st.frozensets(st.sampled_from(["unet", "vae", "text_encoder"])),
        timings=st.none() | st.builds(Timings, st.just("tiny-sd"), SECONDS, SECONDS, SECONDS, SECONDS, SECONDS),
    ),
    st.none() | st.builds(Link, st.floats(1, 1e12), st.floats(0, 1e8)),
    st.sampled_from(["device", "edge"]),
    st.booleans(),
)


def test_the_papers_devices_ship_with_a_source_for_each_figure():
    wanted = {"iphone-14-pro-max", "rtx-4090", "rtx-3080-ti", "jetson-agx-orin", "snapdragon-870"}
    assert wanted <= set(names())
    for name in names():
        profile = load_profile(name)
        assert profile.device.name == name and profile.peak
        assert {"flops_per_s", "watts", "memory_bytes"} <= set(profile.sources)


def test_euci_s_devices_are_the_paper_s():
    phone, card = load_profile("iphone-14-pro-max"), load_profile("rtx-4090")
    assert (phone.device.flops_per_s, phone.device.watts) == (17e12, 4.76)
    assert (card.device.flops_per_s, card.device.watts) == (1321e12, 450.0)
    assert phone.link == Link(125e6, 5e3) and card.link == Link(125e6, 50e3)


@given(PROFILES)
def test_a_profile_comes_back_from_its_json_as_it_was(profile):
    assert parsed(json.loads(json.dumps(facts_of(profile)))) == profile


def test_a_saved_profile_is_loaded_by_its_path(tmp_path):
    profile = load_profile("rtx-4090")
    save_profile(profile, tmp_path / "mine.json")
    assert load_profile(str(tmp_path / "mine.json")) == profile
    assert [path.name for path in tmp_path.iterdir()] == ["mine.json"]


GOOD = {"name": "x", "flops_per_s": 1e12, "watts": 10}
SECONDS_OF = {"model": "m", "step_s": 1, "guided_step_s": 1, "encode_s": 1, "decode_s": 1}


@pytest.mark.parametrize(
    ("facts", "named"),
    [
        ([], "JSON object"),
        ({"name": "x", "watts": 1}, "'flops_per_s' is missing"),
        (GOOD | {"flops_per_s": float("nan")}, "flops_per_s=nan"),
        (GOOD | {"flops_per_s": -1}, "flops_per_s=-1"),
        (GOOD | {"flops_per_s": "fast"}, "flops_per_s='fast' is not a number"),
        (GOOD | {"watts": True}, "watts=True is not a number"),
        (GOOD | {"flops": 1}, "'flops' is not known; did you mean flops_per_s"),
        (GOOD | {"format": 2}, "format=2"),
        (GOOD | {"held": "unet"}, "held='unet'"),
        (GOOD | {"held": ["lora"]}, "lora"),
        (GOOD | {"role": "cloud"}, "role='cloud'"),
        (GOOD | {"link": {"bandwidth_bps": 0, "distance_m": 1}}, "bandwidth_bps=0"),
        (GOOD | {"link": {"bandwidth_bps": 1}}, "must have bandwidth_bps, distance_m"),
        (GOOD | {"timings": {"step_s": 1}}, "timings"),
        (GOOD | {"timings": 3}, "timings=3"),
        (GOOD | {"timings": SECONDS_OF | {"decode_s": 0}}, "timings.decode_s=0"),
    ],
)
def test_what_is_wrong_with_a_profile_is_named(tmp_path, facts, named):
    path = tmp_path / "wrong.json"
    path.write_text(json.dumps(facts))
    with pytest.raises(PlanningError, match=named) as caught:
        load_profile(str(path))
    assert "wrong.json" in str(caught.value)


def test_a_name_that_is_nearly_right_gets_the_right_one():
    with pytest.raises(PlanningError, match="did you mean rtx-4090"):
        load_profile("rtx4090")


def test_a_file_that_is_no_json_is_an_error(tmp_path):
    (tmp_path / "broken.json").write_text("{")
    with pytest.raises(PlanningError, match="cannot be read"):
        load_profile(str(tmp_path / "broken.json"))
