"""lambda of EUCI Eq. 6: every table's rows sum to one, each kind follows its rule, and bad teachers get nothing."""

from collections.abc import Iterator
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import load, save

from fedkd.data.digits import coloured_digits
from fedkd.data.sources import to_dataset
from fedkd.distillation.distil import distil, split
from fedkd.distillation.teachers import BASE, Teachers
from fedkd.distillation.weights import held_out_errors, outliers, picture_errors, set_weights
from fedkd.models.adapter import load_adapter, remove_adapters
from fedkd.models.conditioning import take
from fedkd.models.pipeline import denoiser_of, load_pipeline
from fedkd.training.examples import Examples, encode_examples
from fedkd.training.noise import NoiseSchedule
from tests.distillation.classroom import alone, family, pictures, random_adapter, recipe

NAMES = ["edge-0", "edge-1", BASE]
SOURCE = torch.tensor([0, 0, 0, 1, 1, 2])
HELD_OUT = torch.tensor([0, 1, 3, 5])


def assembled(pipe: Any, dataset: Any, scales: list[float]) -> Iterator[tuple[Teachers, Examples]]:
    """(teachers, examples): adapters of random weights of these scales, and the base."""
    denoiser = denoiser_of(pipe)
    adapters = [random_adapter(denoiser, i, scale) for i, scale in enumerate(scales)]
    for i, data in enumerate(adapters):
        load_adapter(denoiser, data, f"edge-{i}")
    yield Teachers(denoiser, list(NAMES), NoiseSchedule.of(pipe.scheduler)), encode_examples(pipe, dataset, 32)
    remove_adapters(denoiser)


@pytest.fixture
def jury() -> Iterator[tuple[Teachers, Examples]]:
    """Two edges and the base on a model of random weights, six pictures."""
    yield from assembled(family("sd"), pictures(0), [0.1, 0.3])


@pytest.fixture(scope="module")
def shipped() -> Any:
    return load_pipeline("tiny-sd")


@pytest.fixture
def spoilt(shipped: Any) -> Iterator[tuple[Teachers, Examples]]:
    """A first edge of huge random weights and a second of small ones on a model that knows its pictures."""
    yield from assembled(shipped, to_dataset(coloured_digits("base", 8, seed=0)[:6]), [30.0, 0.001])


def table(jury: tuple[Teachers, Examples], kind: str, *options: str, **fixed: float) -> torch.Tensor:
    teachers, examples = jury
    config = recipe(f"teacher_weights={kind}", *options).distillation
    set_weights(
        teachers,
        config,
        examples,
        SOURCE,
        held_out=HELD_OUT,
        fixed={k.replace("_", "-"): v for k, v in fixed.items()},
        seed=0,
    )
    return teachers.table


@pytest.mark.parametrize("kind", ["uniform", "size", "validation", "provenance", "confidence", "fixed"])
def test_every_row_of_lambda_sums_to_one(jury: Any, kind: str) -> None:
    found = table(jury, kind, edge_0=0.3, edge_1=0.9)
    assert found.shape in {(1, 3), (6, 3)} and (found >= 0).all()
    assert torch.allclose(found.sum(1), torch.ones(len(found)), atol=1e-6)


def test_uniform_lambda_is_the_same_for_every_edge(jury: Any) -> None:
    assert table(jury, "uniform").tolist() == [[0.5, 0.5, 0.0]]


def test_lambda_by_size_follows_the_number_of_pictures(jury: Any) -> None:
    assert table(jury, "size")[0].tolist() == pytest.approx([0.6, 0.4, 0.0])


def test_fixed_lambda_is_what_was_given(jury: Any) -> None:
    assert table(jury, "fixed", edge_0=0.25, edge_1=0.75)[0].tolist() == pytest.approx([0.25, 0.75, 0.0])


def test_lambda_by_validation_is_inverse_to_the_held_out_error(jury: Any) -> None:
    teachers, examples = jury
    error = picture_errors(teachers, examples, HELD_OUT, 0).mean(0)
    expected = torch.tensor([1 / error[0], 1 / error[1], 0.0])
    assert torch.allclose(table(jury, "validation")[0], expected / expected.sum(), atol=1e-6)


def test_lambda_by_provenance_asks_who_drew_the_picture(jury: Any) -> None:
    assert torch.equal(table(jury, "provenance"), torch.eye(3)[SOURCE])


def test_lambda_by_confidence_is_highest_for_who_predicts_best(jury: Any) -> None:
    teachers, examples = jury
    error = picture_errors(teachers, examples, torch.arange(6), 0)
    assert torch.equal(table(jury, "confidence").argmax(1), error.argmin(1))


def test_a_pictures_error_is_the_models_own_loss_on_it(jury: Any) -> None:
    teachers, examples = jury
    found = picture_errors(teachers, examples, torch.tensor([2]), 5)
    total = torch.zeros(3)
    cumprod = family("sd").scheduler.alphas_cumprod
    x0, conditions = examples.latents[2:3], take(examples.conditions, examples.caption[2:3])
    for probe, place in enumerate([125, 375, 625, 875]):
        noise = torch.randn(x0.shape, generator=torch.Generator().manual_seed(5 + probe))
        alpha, sigma = cumprod[place] ** 0.5, (1 - cumprod[place]) ** 0.5
        for i, name in enumerate(NAMES):
            said = alone(teachers.denoiser, name, alpha * x0 + sigma * noise, torch.tensor([place]), conditions)
            total[i] += ((said - (alpha * noise - sigma * x0)) ** 2).mean() / 4
    assert torch.allclose(found[0], total, rtol=1e-4)


def test_held_out_errors_are_judged_on_the_teachers_own_pictures(jury: Any) -> None:
    teachers, examples = jury
    found = held_out_errors(teachers, examples, SOURCE, HELD_OUT, 0)
    error = picture_errors(teachers, examples, HELD_OUT, 0, with_base=True)
    assert torch.allclose(found["own"], torch.stack([error[:2, 0].mean(), error[2, 1], error[3, 2]]))
    assert torch.allclose(found["base"], torch.stack([error[:2, 3].mean(), error[2, 3], error[3, 3]]))
    assert torch.allclose(found["all"], error[:, :3].mean(0))


def test_an_unknown_origin_is_refused_by_provenance(jury: Any) -> None:
    teachers, examples = jury
    config = recipe("teacher_weights=provenance").distillation
    unknown = torch.tensor([0, 0, -1, 1, 1, 2])
    with pytest.raises(ValueError, match=r"teacher_weights=provenance.*confidence"):
        set_weights(teachers, config, examples, unknown, held_out=HELD_OUT, seed=0)


def test_an_outlier_is_one_whose_own_error_is_not_finite_or_above_the_limit() -> None:
    own = torch.tensor([1.0, 1.6, torch.nan, torch.inf])
    found = outliers(list("abcd"), {"own": own, "base": torch.ones(4), "all": own}, 1.5)
    assert list(found) == ["b", "c", "d"]
    assert "1.6 times the base's (limit 1.5)" in found["b"] and "not finite" in found["c"]


KINDS = ["uniform", "size", "validation", "provenance", "confidence", "fixed"]


@pytest.mark.parametrize("kind", KINDS)
def test_a_teacher_that_is_far_off_gets_lambda_zero_and_is_named(spoilt: Any, kind: str) -> None:
    teachers, examples = spoilt
    config = recipe(f"teacher_weights={kind}", "outlier=1.5").distillation
    fixed = {"edge-0": 0.9, "edge-1": 0.1}
    left_out = set_weights(teachers, config, examples, SOURCE, held_out=HELD_OUT, fixed=fixed, seed=0)
    assert list(left_out) == ["edge-0"] and "times the base's" in left_out["edge-0"]
    assert (teachers.table[:, 0] == 0).all()
    assert torch.allclose(teachers.table.sum(1), torch.ones(len(teachers.table)))


@pytest.mark.parametrize("kind", KINDS)
def test_a_teacher_that_overflows_spoils_nobody_elses_lambda(spoilt: Any, kind: str) -> None:
    teachers, examples = spoilt
    for key, parameter in teachers.denoiser.named_parameters():
        if ".edge-0." in key:
            parameter.data *= 1e30  # finite weights, outputs that are not
    config = recipe(f"teacher_weights={kind}").distillation
    fixed = {"edge-0": 0.9, "edge-1": 0.1}
    left_out = set_weights(teachers, config, examples, SOURCE, held_out=HELD_OUT, fixed=fixed, seed=0)
    assert list(left_out) == ["edge-0"] and "not finite" in left_out["edge-0"]
    assert (teachers.table[:, 0] == 0).all()
    assert torch.allclose(teachers.table.sum(1), torch.ones(len(teachers.table)))


def test_confidence_among_the_good_does_not_depend_on_who_was_left_out(spoilt: Any) -> None:
    found = table(spoilt, "confidence", "outlier=1.5")
    teachers, examples = spoilt
    error = picture_errors(teachers, examples, torch.arange(6), 0)[:, 1:]
    likely = torch.exp(-error / error.std(correction=0))
    assert torch.allclose(found[:, 1:], likely / likely.sum(1, keepdim=True), atol=1e-5)


def test_a_picture_whose_teacher_is_out_is_shared_by_the_others(spoilt: Any) -> None:
    found = table(spoilt, "provenance", "outlier=1.5")
    assert found[:3].tolist() == [[0.0, 0.5, 0.5]] * 3
    assert torch.equal(found[3:], torch.eye(3)[SOURCE[3:]])


@pytest.mark.parametrize("with_base", [True, False])
def test_nobody_left_is_refused(spoilt: Any, with_base: bool) -> None:
    teachers, examples = spoilt
    for key, parameter in teachers.denoiser.named_parameters():
        if ".edge-1." in key:
            parameter.data *= 1e5
    teachers.names = NAMES if with_base else NAMES[:2]
    source = SOURCE.clamp(max=len(teachers.names) - 1)
    with pytest.raises(ValueError, match=r"no teacher is left.*edge-0.*edge-1.*distillation\.outlier"):
        set_weights(teachers, recipe("outlier=1.5").distillation, examples, source, held_out=HELD_OUT, seed=0)


def test_an_adapter_with_nan_is_left_out_with_its_pictures_and_named() -> None:
    pipe = family("sd")
    good = random_adapter(denoiser_of(pipe), 1)
    broken = save({key: value * float("nan") for key, value in load(good).items()}, metadata={"lora": '{"r": 2}'})
    sets = {"edge-0": pictures(0), "edge-1": pictures(1)}
    made = distil(pipe, sets, {"edge-0": broken, "edge-1": good}, recipe("steps=1"), seed=0)
    assert list(made.left_out) == ["edge-0"] and "not finite" in made.left_out["edge-0"]
    assert made.teacher_weights == {"edge-1": 1.0}


@pytest.mark.parametrize("names", [["edge-0"], ["edge-0", BASE]])
def test_a_student_of_nobody_is_refused(names: list[str]) -> None:
    pipe = family("sd")
    with pytest.raises(ValueError, match="no teacher"):
        distil(pipe, {name: pictures(0) for name in names}, {"edge-0": b"garbage"}, recipe("steps=1"), seed=0)
    assert not getattr(pipe.unet, "peft_config", None)


@settings(max_examples=60, deadline=None)
@given(st.lists(st.integers(0, 30), min_size=1, max_size=5).filter(any), st.floats(0, 0.5), st.integers(0, 9))
def test_a_split_is_a_partition_that_leaves_every_set_something(sizes: list[int], share: float, seed: int) -> None:
    kept, held_out = split(sizes, share, seed)
    assert sorted([*kept.tolist(), *held_out.tolist()]) == list(range(sum(sizes)))
    start = 0
    for size in sizes:
        mine = [i for i in kept.tolist() if start <= i < start + size]
        assert bool(mine) == bool(size) and (len(mine) == size or size >= 4)
        start += size
