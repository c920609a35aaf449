"""What is no hand-off, or not one for this machine, is refused with a reason."""

from __future__ import annotations

import json
import pickle
from contextlib import suppress
from dataclasses import replace
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import save

from fedkd.inference.denoiser import denoise, encode, hand_off, start, take_up
from fedkd.inference.handoff import HandOff, HandOffError


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
        save(
            {"latents": torch.zeros(1)}, metadata={"fedkd-handoff": json.dumps({"format": "fedkd-handoff"})}
        ),
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
def test_a_changed_byte_never_raises_anything_but_a_handoff_error(
    found: HandOff, place: int, value: int
) -> None:
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
