"""Groups keep floor and cap, a policy never shares more than was measured to be harmless, and placements add up."""

from __future__ import annotations

import json
import math
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from fedkd.planning.machines import Device, Link, PlanningError
from fedkd.planning.sharing import SimilarityGraph, group_prompts, steps_saved, unit
from fedkd.planning.sharing_placement import placements
from fedkd.planning.sharing_policy import SharingPolicy, SharingProfile, measured
from fedkd.planning.system import SD_1_5

VECTORS = arrays(np.float64, st.tuples(st.integers(1, 12), st.just(3)), elements=st.integers(-2, 2).map(float))
SOME = VECTORS.map(lambda rows: rows + np.array([0.25, 0.5, 0.125]))  # never zero
FACTS = {"total": 10, "scheduler": "DDIMScheduler", "guidance_scale": 2.0}


def profile(loss: list[list[float]], count: int = 50) -> SharingProfile:
    shape = np.shape(loss)
    edges = tuple(np.linspace(0.5, 0.9, shape[0]))
    return SharingProfile(edges, (2, 4, 6)[: shape[1]], loss, np.zeros(shape), np.full(shape, count), **FACTS)


@settings(deadline=None, max_examples=25)
@given(rows=SOME, floor=st.floats(-1, 1), most=st.integers(1, 5))
def test_groups_hold_everybody_once_within_floor_and_cap(rows: np.ndarray, floor: float, most: int) -> None:
    groups = group_prompts(rows, floor=floor, most=most)
    assert sorted(member for group in groups for member in group.members) == list(range(len(rows)))
    vectors = unit(rows)
    for group in groups:
        assert len(group.members) <= most and group.similarity[0] == 1.0
        for member, similarity in zip(group.members[1:], group.similarity[1:], strict=True):
            assert similarity == pytest.approx(vectors[group.leader] @ vectors[member])
            assert similarity >= floor - 1e-8


@settings(deadline=None, max_examples=20)
@given(rows=SOME, gone=st.sets(st.integers(0, 11)), floor=st.floats(-1, 1))
def test_a_graph_that_grew_and_shrank_is_the_graph_made_afresh(rows: np.ndarray, gone: set[int], floor: float) -> None:
    grown, fresh = SimilarityGraph[int](floor), SimilarityGraph[int](floor)
    for place, row in enumerate(rows):
        grown.add(place, row)
    for place in gone:
        grown.remove(place)
    for place, row in enumerate(rows):
        if place not in gone:
            fresh.add(place, row)
    assert len(grown) == len(fresh)
    for place in range(len(rows)):
        assert (place in grown) == (place in fresh)
        if place in fresh:
            # a product may round otherwise when rows lie elsewhere
            assert set(grown.neighbours(place)) ^ set(fresh.neighbours(place)) <= {
                other for other in range(len(rows)) if abs(unit(rows)[place] @ unit(rows)[other] - floor) < 1e-8
            }


def test_different_prompts_and_one_alone_share_nothing() -> None:
    policy = SharingPolicy(profile([[0.0, 0.0, 0.0]]))
    groups = group_prompts(np.eye(6), floor=policy.floor, most=8)
    assert [len(group.members) for group in groups] == [1] * 6
    assert [policy.group_steps(group.similarity) for group in groups] == [0] * 6
    assert steps_saved(groups, [[0]] * 6) == 0
    assert group_prompts(np.zeros((0, 3)), floor=0.5, most=2) == []


@pytest.mark.parametrize("wrong", [[0.0, 0.0, 0.0], [math.nan, 1, 1], [math.inf, 1, 1]])
def test_an_embedding_without_direction_is_refused(wrong: list[float]) -> None:
    with pytest.raises(PlanningError, match="no direction"):
        SimilarityGraph[int](0.5).add(0, wrong)


def test_a_graph_refuses_another_width_a_known_key_and_senseless_limits() -> None:
    graph = SimilarityGraph[str](0.5)
    graph.add("a", [1, 0])
    for add in (lambda: graph.add("a", [1, 0]), lambda: graph.add("b", [1, 0, 0])):
        with pytest.raises(PlanningError):
            add()
    with pytest.raises(PlanningError, match="floor=2"):
        SimilarityGraph[str](2)
    with pytest.raises(PlanningError, match="most=0"):
        graph.groups(0)


@settings(deadline=None, max_examples=25)
@given(
    loss=arrays(np.float64, (3, 3), elements=st.floats(0, 0.05)),
    low=st.floats(0, 0.05),
    high=st.floats(0, 0.05),
    similarity=st.floats(-1, 1),
)
def test_what_is_shared_was_measured_harmless_and_grows_with_the_allowed_loss(
    loss: np.ndarray, low: float, high: float, similarity: float
) -> None:
    found = profile(loss.tolist())
    few, many = (SharingPolicy(found, each).steps(similarity) for each in sorted((low, high)))
    assert few <= many < found.total
    place = found.bin_of(similarity)
    if many:
        assert place is not None and loss[place, found.steps.index(many)] <= max(low, high)
    if place is None:
        assert many == 0


def test_uncertain_bins_and_bins_of_few_pairs_share_nothing() -> None:
    harmless = profile([[0.0, 0.0, 0.0]])
    assert SharingPolicy(harmless).table == (6,) and SharingPolicy(harmless).forks == (6,)
    assert SharingPolicy(replace(harmless, error=np.full((1, 3), 0.02))).table == (0,)
    assert SharingPolicy(replace(harmless, count=np.full((1, 3), 19))).floor == math.inf
    assert SharingPolicy(harmless).steps(math.nan) == 0
    with pytest.raises(PlanningError, match="allowed_loss=2"):
        SharingPolicy(harmless, 2.0)


def test_a_bin_of_few_pairs_is_judged_with_the_ones_below_unless_its_own_say_otherwise() -> None:
    count, error = np.array([[100.0] * 3, [100.0] * 3]), np.array([[0.008] * 3, [0.015] * 3])
    alike = replace(profile([[0.0, 0.0, 0.05], [0.0, 0.0, 0.0]]), count=count, error=error)
    assert SharingPolicy(replace(alike, loss=np.array([[0.5] * 3, [0.0] * 3]))).table == (0, 0)  # too uncertain alone
    assert SharingPolicy(alike).table == (alike.steps[1], alike.steps[1])  # as certain as both together
    assert SharingPolicy(replace(alike, loss=np.array([[0.0] * 3, [0.0, 0.02, 0.02]]))).table[1] == alike.steps[0]


def test_a_group_shares_what_its_least_similar_member_may() -> None:
    policy = SharingPolicy(profile([[0.0, 0.1, 0.1], [0.0, 0.0, 0.0]]))
    assert policy.group_steps([1.0, 0.95]) == 6 and policy.group_steps([1.0, 0.95, 0.6]) == 2
    assert policy.group_steps([1.0, 0.2]) == 0 and policy.group_steps([1.0]) == 0
    assert policy.fits("DDIMScheduler", 10, 2.0) and not policy.fits("DDIMScheduler", 11, 2.0)


def test_measured_pairs_become_means_and_standard_errors_by_bin() -> None:
    found = measured([0.2, 0.6, 0.6, 1.0], [[1, 1], [0, 1], [0, 0], [0, 0]], edges=(0.5, 0.9), steps=(1, 2), **FACTS)
    assert found.count.tolist() == [[2, 2], [1, 1]]
    assert found.loss.tolist() == [[0, 0.5], [0, 0]] and found.error[0].tolist() == [1 / 3, 0.5]
    with pytest.raises(PlanningError, match="lost has shape"):
        measured([1.0], [[0]], edges=(0.5,), steps=(1, 2), **FACTS)


def test_a_profile_survives_its_file(tmp_path: Path) -> None:
    path = tmp_path / "sharing.json"
    before = profile([[0.0, 0.01, 0.2], [0.0, 0.0, 0.1]])
    before.save(path)
    after = SharingProfile.load(path)
    assert (after.edges, after.steps, after.total) == (before.edges, before.steps, before.total)
    assert after.loss.tolist() == before.loss.tolist() and SharingPolicy(after).table == SharingPolicy(before).table


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({"steps": [2, 4, 10]}, "steps="),
        ({"steps": [4, 2, 6]}, "steps="),
        ({"edges": [0.9, 0.5]}, "edges="),
        ({"edges": [0.5, 1.5]}, "edges="),
        ({"loss": [[0.0]]}, "loss has shape"),
        ({"loss": "many"}, "no profile of sharing"),
        ({"error": [[0.0, 0.0, math.nan]] * 2}, "error holds NaN"),
        ({"total": 0}, "total=0"),
        ({"scheduler": 3}, "scheduler=3"),
        ({"format": 99}, "format must be 1"),
        ({"count": None}, "no profile of sharing"),
    ],
)
def test_a_broken_profile_says_what_is_wrong(tmp_path: Path, change: dict[str, object], says: str) -> None:
    path = tmp_path / "sharing.json"
    profile([[0.0, 0.01, 0.2], [0.0, 0.0, 0.1]]).save(path)
    path.write_text(json.dumps(json.loads(path.read_text()) | change))
    with pytest.raises(PlanningError, match=says):
        SharingProfile.load(path)


@pytest.mark.parametrize("text", ["", "[]", "{}", "\x00"])
def test_a_file_that_is_no_profile_is_refused(tmp_path: Path, text: str) -> None:
    path = tmp_path / "sharing.json"
    path.write_text(text)
    with pytest.raises(PlanningError, match="fedkd bench sharing"):
        SharingProfile.load(path)


PHONE = Device("phone", flops_per_s=1e12, watts=4.0, send_watts=1.0, receive_watts=0.5)
EDGE = Device("edge", flops_per_s=100e12, watts=300.0)
LINKS = {"edge": EDGE, "link": Link(100e6, 1e3), "peers": Link(50e6, 10)}


@settings(deadline=None, max_examples=20)
@given(members=st.integers(1, 6), total=st.integers(1, 20), share=st.floats(0, 0.99), guidance=st.booleans())
def test_placements_save_the_shared_steps_of_all_but_one(
    members: int, total: int, share: float, guidance: bool
) -> None:
    shared = int(share * total)
    devices = [replace(PHONE, name=f"phone-{place}", flops_per_s=(1 + place) * 1e12) for place in range(members)]
    found = placements(SD_1_5, devices, num_inference_steps=total, shared_steps=shared, guidance=guidance, **LINKS)
    assert [each.delay_s for each in found] == sorted(each.delay_s for each in found)
    kinds = {each.topology for each in found}
    peers = {"device_to_device"} if members == 2 else {"cluster"}
    assert kinds == ({"unshared", "edge_to_many"} | peers if members > 1 and shared else {"unshared"})
    for each in found:
        assert each.steps + each.saved == members * total and len(each.delays_s) == members
        assert each.saved == (0 if each.topology == "unshared" else shared * (members - 1))
        if each.topology not in ("unshared", "edge_to_many"):
            assert each.sent_bytes == (members - 1) * SD_1_5.latents_bytes


def test_a_device_that_shares_takes_the_time_of_its_parts() -> None:
    devices = [PHONE, replace(PHONE, name="other")]
    found = placements(SD_1_5, devices, num_inference_steps=10, shared_steps=4, guidance=False, peers=Link(50e6, 10))
    first = next(each for each in found if each.shared_by == "phone")
    step, encode, decode = (flop / 1e12 for flop in (SD_1_5.unet_flop, SD_1_5.text_encoder_flop, SD_1_5.vae_flop))
    air = 8 * SD_1_5.latents_bytes / 50e6
    assert first.delays_s[0] == pytest.approx(encode + 10 * step + decode + air)
    assert first.delays_s[1] == pytest.approx(encode + 10 * step + decode + air + 10 / 2e8)
    joules = 4.0 * (2 * encode + 16 * step + 2 * decode) + 1.5 * air
    assert first.energy_j == pytest.approx(joules)


@pytest.mark.parametrize("shared", [-1, 10])
def test_shared_steps_leave_at_least_one_to_everybody(shared: int) -> None:
    with pytest.raises(PlanningError, match="shared_steps"):
        placements(SD_1_5, [PHONE], num_inference_steps=10, shared_steps=shared, guidance=False)
    with pytest.raises(PlanningError, match="devices"):
        placements(SD_1_5, [], num_inference_steps=10, shared_steps=0, guidance=False)
