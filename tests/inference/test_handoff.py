"""What is no hand-off, or not one for this machine, is refused with a reason."""

from __future__ import annotations

import json
import math
import pickle
from contextlib import suppress
from dataclasses import replace
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors import safe_open
from safetensors.torch import load, save

from fedkd.inference.channel import over_channel
from fedkd.inference.condition_codec import restore, strip
from fedkd.inference.denoiser import denoise, encode, hand_off, start, take_up
from fedkd.inference.handoff import FORMAT, HandOff, HandOffError
from fedkd.inference.wire import FORMS


@pytest.fixture(scope="module")
def found(tiny_pipeline: Any) -> HandOff:
    """A DPM-Solver++ job after two of four steps."""
    conditions = encode(tiny_pipeline, "a red seven", 2.0)
    job = start(
        tiny_pipeline, conditions, seed=1, num_inference_steps=4, guidance_scale=2.0,
        scheduler="DPMSolverMultistepScheduler",
    )  # fmt: skip
    return hand_off(denoise(tiny_pipeline.unet, job, 2), "model-a", with_conditions=True)


def test_the_wire_form_comes_back_whole(found: HandOff) -> None:
    again = HandOff.from_bytes(found.to_bytes(), model="model-a")
    assert again.to_bytes() == found.to_bytes()
    assert torch.equal(again.latents, found.latents)
    assert again.scheduler_config == found.scheduler_config


def changed(data: bytes, path: Any, header: dict[str, Any], **tensors: torch.Tensor) -> bytes:
    """`data` with entries of its JSON header, and tensors, replaced."""
    (path / "handoff").write_bytes(data)
    with safe_open(path / "handoff", "pt") as opened:
        before = json.loads(opened.metadata()[FORMAT])
    return save(load(data) | tensors, metadata={FORMAT: json.dumps(before | header)})


def test_a_setting_that_the_scheduler_does_not_have_is_refused(found: HandOff) -> None:
    misspelt = replace(found, scheduler_config=found.scheduler_config | {"stdps_offset": 1})
    with pytest.raises(HandOffError, match="DPMSolverMultistepScheduler has no setting 'stdps_offset'"):
        take_up(HandOff.from_bytes(misspelt.to_bytes()))


@pytest.mark.parametrize("form", FORMS)
def test_every_wire_form_is_read_and_leads_to_nearly_the_same_latents(
    found: HandOff, tiny_pipeline: Any, form: Any
) -> None:
    again = HandOff.from_bytes(found.to_bytes(form), model="model-a", shape=(1, 4, 8, 8))
    assert again.form == form
    assert again.latents.dtype == found.latents.dtype
    assert [again.step, again.seed, again.scheduler_config] == [found.step, found.seed, found.scheduler_config]
    assert again.conditions is not None and found.conditions is not None
    assert torch.equal(again.conditions["encoder_hidden_states"], found.conditions["encoder_hidden_states"])
    ends = [denoise(tiny_pipeline.unet, take_up(sent)).latents for sent in (again, found)]
    assert torch.equal(*ends) == (form == "exact")
    assert (ends[0] - ends[1]).abs().max() < 0.1 * ends[1].std()


def test_protection_saves_a_picture_that_crosses_a_noisy_channel(found: HandOff, tiny_pipeline: Any) -> None:
    clean = denoise(tiny_pipeline.unet, take_up(found)).latents
    errors = {}
    for form in FORMS[1:]:
        noisy = replace(found, latents=over_channel(found.latents, form, bit_flip_rate=0.02, seed=0))
        errors[form] = float((denoise(tiny_pipeline.unet, take_up(noisy)).latents - clean).square().mean().sqrt())
    assert 10 * errors.pop("uint8_protected") < min(errors.values())


def test_a_lossy_form_shrinks_the_schedulers_tensors_too(found: HandOff) -> None:
    alone = replace(found, conditions=None)
    assert sum(isinstance(output, torch.Tensor) for output in found.state["model_outputs"]) == 2
    saved = len(alone.to_bytes()) - len(alone.to_bytes("uint8"))
    assert saved > 0.8 * 3 * 256 * 3  # three tensors of 256 values, three bytes less each


@pytest.mark.parametrize("form", FORMS[1:])
@settings(max_examples=40, deadline=None)
@given(place=st.integers(0, 4000), value=st.integers(0, 255))
def test_a_changed_byte_in_a_lossy_form_is_finite_or_refused(found: HandOff, form: Any, place: int, value: int) -> None:
    data = bytearray(found.to_bytes(form))
    data[min(place, len(data) - 1)] = value
    with suppress(HandOffError):
        assert torch.isfinite(take_up(HandOff.from_bytes(bytes(data))).latents).all()


FACT = {"shape": [1, 4, 8, 8], "dtype": "float32", "limit": 4.0}


@pytest.mark.parametrize(
    ("header", "tensors", "expected"),
    [
        ({"form": "zip"}, {}, "give one of"),
        ({"form": ["uint8"]}, {}, "give one of"),
        ({"form": "exact"}, {}, "packed"),
        ({"packed": {}}, {}, "packed"),
        ({"packed": [1]}, {}, "packed"),
        ({"packed": {"latents": 3}}, {}, "is not said"),
        ({"packed": {"latents": FACT | {"limit": 4}}}, {}, "is not said"),
        ({"packed": {"latents": FACT | {"shape": [1, 4, 8, "8"]}}}, {}, "is not said"),
        ({"packed": {"latents": FACT | {"shape": [1, 4, 8, 7]}}}, {}, "bytes are not latents"),
        ({"packed": {"latents": FACT | {"shape": [1, 4, 2**40, 8]}}}, {}, "more than"),
        ({"packed": {"latents": FACT | {"limit": 1e300}}}, {}, "limit 1e"),
        ({"packed": {"latents": FACT | {"dtype": "object"}}}, {}, "dtype 'object'"),
        ({"packed": {"latents": FACT, "absent": FACT}}, {}, "lacks 'absent'"),
        ({}, {"latents": torch.zeros(256)}, "not in the form"),
        ({"conditions": {"encoder_hidden_states": [2, 2**40, 32]}}, {}, "more than"),
        ({"conditions": {"encoder_hidden_states": [2, 1, 1]}}, {}, "no part of"),
        ({"conditions": {"encoder_hidden_states": [2, -16, 32]}}, {}, "positive"),
        ({"conditions": {"surprise": [2, 16, 32]}}, {}, "some of"),
        ({"conditions": True}, {}, "some of"),
        ({"conditions": {"time_ids": [2, 6]}}, {}, "lacks 'conditions.time_ids'"),
    ],
)
def test_a_header_that_does_not_fit_its_tensors_is_refused(
    found: HandOff, tmp_path: Any, header: dict[str, Any], tensors: dict[str, Any], expected: str
) -> None:
    with pytest.raises(HandOffError, match=expected):
        HandOff.from_bytes(changed(found.to_bytes("uint8"), tmp_path, header, **tensors))


@pytest.mark.parametrize("form", FORMS)
def test_latents_of_another_shape_than_expected_are_refused(found: HandOff, form: Any) -> None:
    with pytest.raises(HandOffError, match="expected"):
        HandOff.from_bytes(found.to_bytes(form), shape=(1, 4, 16, 16))


def test_latents_that_a_lossy_form_cannot_hold_are_named(found: HandOff) -> None:
    with pytest.raises(HandOffError, match="fit fp16"):
        replace(found, latents=torch.full((1, 4, 8, 8), 1e6)).to_bytes("fp16")
    with pytest.raises(HandOffError, match="give one of"):
        found.to_bytes("zip")  # type: ignore[arg-type]


CONDITIONS = st.lists(st.integers(1, 4), min_size=1, max_size=4).flatmap(
    lambda shape: st.lists(
        st.sampled_from([0.0, 0.0, 0.0, -0.0, 1.5]), min_size=math.prod(shape), max_size=math.prod(shape)
    ).map(lambda values: torch.tensor(values).reshape(shape))
)


@settings(max_examples=80, deadline=None)
@given(CONDITIONS, st.booleans())
def test_stripped_conditions_come_back_bit_for_bit(condition: torch.Tensor, same: bool) -> None:
    whole = condition[:1].expand_as(condition) if same else condition
    again = restore(strip(whole), list(whole.shape))
    assert torch.equal(again.view(torch.int32), whole.contiguous().view(torch.int32))


def test_a_handoff_for_another_model_is_refused(found: HandOff) -> None:
    with pytest.raises(HandOffError, match="another model"):
        HandOff.from_bytes(found.to_bytes(), model="model-b")


@pytest.mark.parametrize(
    "data",
    [
        b"",
        b"garbage",
        b"\xff" * 64,
        (10**6).to_bytes(8, "little") + b"{}",
        (2).to_bytes(8, "little") + b"{}",
        (2).to_bytes(8, "little") + b"[]",
        pickle.dumps({"latents": [1]}),
        save({"latents": torch.zeros(1, 4, 8, 8)}),
        save({"latents": torch.zeros(1)}, metadata={"fedkd-handoff": "[" * 5000}),
        save({"latents": torch.zeros(1)}, metadata={"fedkd-handoff": json.dumps({"format": "fedkd-handoff"})}),
    ],
)
def test_bytes_that_are_no_handoff_are_refused(data: bytes) -> None:
    with pytest.raises(HandOffError):
        HandOff.from_bytes(data)


def test_a_truncated_handoff_is_refused(found: HandOff) -> None:
    data = found.to_bytes()
    for cut in (4, 100, len(data) // 2, len(data) - 1):
        with pytest.raises(HandOffError):
            HandOff.from_bytes(data[:cut])


@settings(max_examples=60, deadline=None)
@given(place=st.integers(0, 4000), value=st.integers(0, 255))
def test_a_changed_byte_never_raises_anything_but_a_handoff_error(found: HandOff, place: int, value: int) -> None:
    data = bytearray(found.to_bytes())
    data[place] = value
    with suppress(HandOffError):
        take_up(HandOff.from_bytes(bytes(data)))


@pytest.mark.parametrize(
    ("change", "expected"),
    [
        ({"latents": torch.full((1, 4, 8, 8), float("nan"))}, "not finite"),
        ({"latents": torch.zeros(4, 8, 8)}, "shape"),
        ({"latents": torch.zeros(2, 4, 8, 8)}, "shape"),
        ({"dtype": "float16"}, "dtype"),
        ({"step": -1}, "negative"),
        ({"step": 99}, "step 99 of 4"),
        ({"step": True}, "step is a bool"),
        ({"step": 3}, "does not fit step 3"),
        ({"guidance_scale": float("inf")}, "finite"),
        ({"guidance_scale": 1.0}, "rows"),
        ({"seed": -1}, "seed"),
        ({"generator": torch.zeros(3, dtype=torch.uint8)}, "5056"),
        ({"generator": torch.zeros(5056, dtype=torch.uint8)}, "generator"),
        ({"scheduler": "DPMSolverSDEScheduler"}, "not known"),
        ({"scheduler": "../etc/passwd"}, "not known"),
        ({"arguments": {"num_inference_steps": 10**9}}, "give 1 to 1000"),
        ({"arguments": {"num_inference_steps": 4, "surprise": 1}}, "num_inference_steps"),
        ({"scheduler_config": {"num_train_timesteps": 10**12}}, "num_train_timesteps"),
        ({"state": {"step": "overwritten"}}, "no state called 'step'"),
        ({"state": {"config": {}}}, "no state called 'config'"),
        ({"state": {"model_outputs": [torch.zeros(9, 9)]}}, "shape"),
        ({"state": {"model_outputs": [torch.full((1, 4, 8, 8), float("inf"))]}}, "not finite"),
        ({"state": {"model_outputs": "text"}}, "short list"),
        ({"state": {"lower_order_nums": "text"}}, "must be a number"),
        ({"conditions": {}}, "encoder_hidden_states"),
        ({"conditions": {"encoder_hidden_states": torch.full((2, 16, 32), float("nan"))}}, "not finite"),
    ],
)
def test_a_handoff_that_cannot_be_is_refused_with_its_reason(
    found: HandOff, change: dict[str, Any], expected: str
) -> None:
    with pytest.raises(HandOffError, match=expected):
        take_up(HandOff.from_bytes(replace(found, **change).to_bytes()))


def test_stochastic_flow_matching_is_refused(found: HandOff) -> None:
    changed = replace(
        found,
        scheduler="FlowMatchEulerDiscreteScheduler",
        scheduler_config={"stochastic_sampling": True},
        state={},
    )
    with pytest.raises(HandOffError, match="stochastic_sampling"):
        take_up(HandOff.from_bytes(changed.to_bytes()))
