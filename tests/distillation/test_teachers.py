"""Many teachers on one base: one forward for a mixed batch says what each says alone, and costs adapters only."""

import copy
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from fedkd.distillation.teachers import BASE, Teachers, asked
from fedkd.models.adapter import AdapterError, adapter_per_row, add_adapter, load_adapter, remove_adapters
from fedkd.models.conditioning import Conditions, encode_prompts, predict, take
from fedkd.models.pipeline import denoiser_of
from fedkd.training.noise import NoiseSchedule
from tests.distillation.classroom import LORA, alone, family, random_adapter

NAMES = ["edge-0", "edge-1", "whole", BASE]


def told(pipe: Any, count: int) -> tuple[torch.Tensor, torch.Tensor, Conditions]:
    """(x_t, index, conditions) of `count` rows that all differ."""
    generator = torch.Generator().manual_seed(1)
    x_t = torch.randn(count, 4, 8, 8, generator=generator)
    index = torch.linspace(50, 950, count).long()
    return x_t, index, encode_prompts(pipe, [f"picture {i}" for i in range(count)])


def loaded(pipe: Any) -> Teachers:
    """Two adapters, one whole model and the bare base, beside a student that is active."""
    denoiser = denoiser_of(pipe)
    whole = copy.deepcopy(denoiser)
    with torch.no_grad():
        for parameter in whole.parameters():
            parameter.mul_(1.1)
    adapters = {name: random_adapter(denoiser, i) for i, name in enumerate(NAMES[:2])}
    add_adapter(denoiser, "student", LORA, 5)
    for name, data in adapters.items():
        load_adapter(denoiser, data, name)
    return Teachers(denoiser, NAMES, NoiseSchedule.of(pipe.scheduler), {"whole": whole})


@pytest.mark.parametrize("name", ["sd", "sdxl", "sd3"])
@pytest.mark.parametrize("which", [[1, 0, 3, 1, 3, 0], [2, 1, 0, 3, 2, 1], [2, 2, 2, 2, 2, 2]])
def test_a_mixed_batch_says_what_each_teacher_says_alone(name: str, which: list[int]) -> None:
    pipe = family(name)
    x_t, index, conditions = told(pipe, len(which))
    teachers = loaded(pipe)
    try:
        with torch.no_grad():
            mixed = teachers.raw(torch.tensor(which), x_t, index, conditions)
        timesteps = teachers.schedule.timesteps[index]
        for row, place in enumerate(which):
            one = torch.tensor([row])
            given = x_t[one], timesteps[one], take(conditions, one)
            if NAMES[place] == "whole":
                expected = predict(teachers.modules["whole"], *given).detach()
            else:
                expected = alone(teachers.denoiser, NAMES[place], *given)
            assert torch.allclose(mixed[row], expected[0], atol=1e-5)
    finally:
        remove_adapters(teachers.denoiser)


@pytest.mark.parametrize("name", ["sd", "sdxl", "sd3"])
def test_teachers_differ_from_one_another_and_from_the_base(name: str) -> None:
    pipe = family(name)
    x_t, index, conditions = (v[:1].repeat(3, 1, 1, 1) if i == 0 else v for i, v in enumerate(told(pipe, 3)))
    conditions, index = take(conditions, torch.zeros(3, dtype=torch.long)), index[:1].expand(3)
    teachers = loaded(pipe)
    try:
        with torch.no_grad():
            said = teachers.raw(torch.tensor([0, 1, 3]), x_t, index, conditions)
        for one, other in ((0, 1), (0, 2), (1, 2)):
            assert (said[one] - said[other]).abs().max() > 1e-3
    finally:
        remove_adapters(teachers.denoiser)


def test_guided_x0_is_the_empty_output_plus_the_scaled_difference() -> None:
    pipe = family("sd")
    x_t, index, conditions = told(pipe, 3)
    empty = encode_prompts(pipe, [""] * 3)
    teachers = loaded(pipe)
    try:
        x0 = teachers.x0(torch.tensor([0, 0, 0]), x_t, index, conditions, empty=empty, guidance_scale=3.0)
        without = alone(teachers.denoiser, "edge-0", x_t, index, empty)
        with_caption = alone(teachers.denoiser, "edge-0", x_t, index, conditions)
        cumprod = pipe.scheduler.alphas_cumprod[index].view(-1, 1, 1, 1)
        v = without + 3.0 * (with_caption - without)
        assert torch.allclose(x0, cumprod**0.5 * x_t - (1 - cumprod) ** 0.5 * v, atol=1e-4)
    finally:
        remove_adapters(teachers.denoiser)


def test_the_mean_of_teachers_is_the_weighted_sum_of_their_x0() -> None:
    pipe = family("sd")
    x_t, index, conditions = told(pipe, 3)
    weights = torch.tensor([[0.2, 0.5, 0.0, 0.3], [1.0, 0.0, 0.0, 0.0], [0.0, 0.25, 0.75, 0.0]])
    teachers = loaded(pipe)
    try:
        mean = teachers.mean_x0(weights, x_t, index, conditions)
        cumprod = pipe.scheduler.alphas_cumprod[index].view(-1, 1, 1, 1)
        expected = torch.zeros_like(x_t)
        for place, name in enumerate(NAMES):
            if name == "whole":
                v = predict(teachers.modules["whole"], x_t, index, conditions).detach()
            else:
                v = alone(teachers.denoiser, name, x_t, index, conditions)
            expected += weights[:, place].view(-1, 1, 1, 1) * (cumprod**0.5 * x_t - (1 - cumprod) ** 0.5 * v)
        assert torch.allclose(mean, expected, atol=1e-5)
    finally:
        remove_adapters(teachers.denoiser)


@pytest.mark.parametrize("name", ["sd", "sdxl", "sd3"])
def test_asking_teachers_leaves_the_student_active_and_its_gradients_on(name: str) -> None:
    pipe = family(name)
    x_t, index, conditions = told(pipe, 4)
    teachers = loaded(pipe)
    try:
        denoiser = teachers.denoiser
        before = {key: p.requires_grad for key, p in denoiser.named_parameters()}
        assert {key for key, on in before.items() if on} == {key for key in before if ".student." in key}
        teachers.raw(torch.tensor([0, 1, 2, 3]), x_t, index, conditions)
        assert denoiser.active_adapters() == ["student"]
        assert {key: p.requires_grad for key, p in denoiser.named_parameters()} == before
    finally:
        remove_adapters(teachers.denoiser)


def test_a_teachers_output_has_no_path_to_the_student() -> None:
    pipe = family("sd")
    x_t, index, conditions = told(pipe, 2)
    teachers = loaded(pipe)
    try:
        said = teachers.raw(torch.tensor([0, 3]), x_t.requires_grad_(True), index, conditions)
        said.sum().backward()
        assert x_t.grad is not None and x_t.grad.abs().max() > 0
        assert all(p.grad is None for key, p in teachers.denoiser.named_parameters())
    finally:
        remove_adapters(teachers.denoiser)


def test_sixteen_teachers_add_their_adapters_and_nothing_else() -> None:
    denoiser = denoiser_of(family("sd"))
    before = sum(p.numel() for p in denoiser.parameters())
    layers = [m for key, m in denoiser.named_modules() if key.endswith(tuple(LORA.target_modules))]
    one = sum(LORA.rank * (layer.in_features + layer.out_features) for layer in layers)
    data = random_adapter(denoiser, 0)
    try:
        for i in range(16):
            load_adapter(denoiser, data, f"edge-{i}")
        assert sum(p.numel() for p in denoiser.parameters()) == before + 16 * one
    finally:
        remove_adapters(denoiser)


def test_an_adapter_that_is_not_loaded_is_named() -> None:
    denoiser = denoiser_of(family("sd"))
    with pytest.raises(AdapterError, match=r"'edge-9'.*loaded: none"), adapter_per_row(denoiser, ["edge-9"]):
        pass
    load_adapter(denoiser, random_adapter(denoiser, 0), "edge-0")
    try:
        named = pytest.raises(AdapterError, match=r"'edge-9'.*loaded: edge-0")
        with named, adapter_per_row(denoiser, [None, "edge-9"]):
            pass
    finally:
        remove_adapters(denoiser)


def test_a_failed_forward_leaves_no_adapter_choice_behind() -> None:
    pipe = family("sd")
    x_t, index, conditions = told(pipe, 2)
    teachers = loaded(pipe)
    try:
        before = alone(teachers.denoiser, "edge-0", x_t, index, conditions)
        with pytest.raises(ValueError), adapter_per_row(teachers.denoiser, ["edge-1"]):
            predict(teachers.denoiser, x_t, index, conditions)
        assert torch.equal(alone(teachers.denoiser, "edge-0", x_t, index, conditions), before)
    finally:
        remove_adapters(teachers.denoiser)


@settings(max_examples=60, deadline=None)
@given(
    st.integers(1, 5).flatmap(
        lambda n: st.lists(
            st.lists(st.one_of(st.just(0.0), st.floats(0.001, 1)), min_size=n, max_size=n), min_size=1, max_size=6
        )
    )
)
def test_what_is_asked_parts_lambda_exactly(rows: list[list[float]]) -> None:
    weights = torch.tensor(rows)
    total = torch.zeros_like(weights)
    groups = asked(weights)
    for places, which, share in groups:
        assert len(places.unique()) == len(places) and (share > 0).all()
        assert (total[places, which] == 0).all()
        total[places, which] = share
    assert torch.equal(total, weights)
    assert len(groups) == int((weights > 0).sum(1).max())


@settings(max_examples=30, deadline=None)
@given(st.lists(st.integers(0, 4), min_size=1, max_size=8))
def test_one_teacher_a_row_is_one_forward(chosen: list[int]) -> None:
    ((rows, which, share),) = asked(torch.eye(5)[chosen])
    assert rows.tolist() == list(range(len(chosen))) and which.tolist() == chosen
    assert torch.equal(share, torch.ones(len(chosen)))
