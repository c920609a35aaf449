"""Any scheduler state survives the wire exactly."""

from __future__ import annotations

import json
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import load, save

from fedkd.inference.schedulers import same
from fedkd.inference.state_codec import CodecError, decode, encode

TENSORS = st.lists(st.floats(width=32), min_size=0, max_size=4).map(torch.tensor)
LEAVES = (
    st.none()
    | st.booleans()
    | st.integers(-(2**40), 2**40)
    | st.floats()
    | st.text(max_size=5)
    | TENSORS
    | st.floats(width=32).map(torch.tensor)
    | st.integers(-(2**31), 2**31 - 1).map(np.int32)
    | st.floats(width=32).map(np.float32)
    | st.floats().map(np.float64)
    | TENSORS.map(lambda tensor: tensor.numpy())
)
VALUES = st.recursive(
    LEAVES,
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.lists(inner, max_size=3).map(tuple)
        | st.dictionaries(st.text(max_size=4), inner, max_size=3)
    ),
    max_leaves=6,
)


def over_the_wire(value: Any) -> Any:
    tensors: dict[str, torch.Tensor] = {}
    header = json.loads(json.dumps(encode(value, tensors, "state"), allow_nan=False))
    return decode(header, load(save(tensors)))


def equal(a: Any, b: Any) -> bool:
    if isinstance(a, dict):
        return isinstance(b, dict) and a.keys() == b.keys() and all(equal(a[key], b[key]) for key in a)
    if isinstance(a, list | tuple):
        return type(a) is type(b) and len(a) == len(b) and all(equal(x, y) for x, y in zip(a, b, strict=True))
    if isinstance(a, float | np.floating) and a != a:
        return type(a) is type(b) and bool(b != b)
    return same(a, b)


@settings(max_examples=150, deadline=None)
@given(VALUES)
def test_any_state_comes_back_as_it_was(value: Any) -> None:
    assert equal(value, over_the_wire(value))


def test_shared_storage_is_sent_as_two_tensors() -> None:
    tensor = torch.arange(6.0)
    assert equal(over_the_wire([tensor, tensor[2:], None]), [tensor, tensor[2:], None])


@pytest.mark.parametrize(
    "form",
    [
        {"tensor": "absent"},
        {"tensor": ["state"]},
        {"object": "os.system"},
        {"numpy": "object", "value": 1},
        {"numpy": "int8", "value": 4000},
        {"numpy": "int8", "value": "x"},
        {"float": "1e999"},
        {"tuple": 3},
        {},
    ],
)
def test_json_that_is_no_state_is_refused(form: Any) -> None:
    with pytest.raises(CodecError):
        decode(form, {})


def test_deep_nesting_is_refused() -> None:
    form: Any = 1
    for _ in range(50):
        form = [form]
    with pytest.raises(CodecError, match="nested"):
        decode(form, {})


def test_an_object_has_no_wire_form() -> None:
    with pytest.raises(CodecError, match="no wire form"):
        encode(object(), {}, "state")
