"""EUCI Eqs. 5-7 as the paper writes them, computed again from the scheduler's own table and plain forwards."""

from typing import Any

import pytest
import torch
from diffusers import DDIMScheduler

from fedkd.distillation.method import Batch, Method
from fedkd.distillation.teachers import BASE
from fedkd.training.finetune import finetune
from tests.distillation.classroom import (
    alone,
    classroom,
    family,
    gradient,
    levels,
    pictures,
    recipe,
    student_alone,
    x0_of_v,
)

Draw = tuple[Batch, torch.Tensor, torch.Tensor, torch.Tensor]


def weight(scheduler: Any, index: torch.Tensor, kind: str, k: float = 5.0) -> torch.Tensor:
    """c(t) from the table of ᾱ."""
    cumprod = scheduler.alphas_cumprod[index]
    snr = cumprod / (1 - cumprod)
    return {
        "uniform": torch.ones_like(snr),
        "alphas_cumprod": cumprod,
        "snr": snr,
        "truncated_snr": torch.maximum(snr, torch.ones_like(snr)),
        "min_snr": torch.minimum(snr, torch.full_like(snr, k)),
    }[kind]


def drawn(method: Method, seed: int, table: torch.Tensor | None = None) -> tuple[Any, ...]:
    """(rows, conditions, x0, index, noise, generator): the batch of a seed, drawn in the order of the loss."""
    generator = torch.Generator().manual_seed(seed)
    examples, count = method.lesson.examples, method.config.batch_size
    rows = torch.randint(len(examples), (count,), generator=generator)
    empty = torch.rand(count, generator=generator) < method.config.caption_dropout
    place = torch.where(empty, torch.full_like(rows, 2), examples.caption[rows])  # two captions, then the empty one
    conditions = {key: value[place] for key, value in examples.conditions.items()}
    index = torch.randint(1000, (count,), generator=generator)
    x0 = examples.latents[rows]
    return rows, conditions, x0, index, torch.randn(x0.shape, generator=generator), generator


def by_hand(method: Method, seed: int, lambdas: dict[str, float]) -> tuple[torch.Tensor, torch.Tensor]:
    """(L_task, L_distill) of the batch of a seed with d = mse, from the equations."""
    scheduler, config = method.lesson.scheduler, method.config
    _, conditions, x0, index, noise, generator = drawn(method, seed)
    alpha, sigma = levels(scheduler, index)
    x_t = alpha * x0 + sigma * noise
    output = student_alone(method, x_t, index, conditions)
    task = ((output - (alpha * noise - sigma * x0)) ** 2).mean()
    own = x0_of_v(scheduler, output, x_t, index)
    if config.form == "renoise":
        index = torch.randint(1000, (len(x0),), generator=generator)
        alpha, sigma = levels(scheduler, index)
        x_t = alpha * own.detach() + sigma * torch.randn(x0.shape, generator=generator)
    distill = torch.zeros(())
    for name, share in lambdas.items():
        told = x0_of_v(scheduler, alone(method.student.denoiser, name, x_t, index, conditions), x_t, index)
        d = ((own - told) ** 2).mean((1, 2, 3))
        distill = distill + share * (weight(scheduler, index, config.weighting, config.min_snr_k) * d).mean()
    return task, distill


@pytest.mark.parametrize("form", ["same", "renoise"])
@pytest.mark.parametrize("weighting", ["uniform", "alphas_cumprod", "snr", "truncated_snr", "min_snr"])
def test_the_loss_and_its_gradient_are_equations_5_6_and_7(form: str, weighting: str) -> None:
    chosen = recipe(f"form={form}", f"weighting={weighting}", "gamma=0.3", "min_snr_k=2", "caption_dropout=0.3")
    with classroom(family("sd"), chosen) as method:
        method.teachers.table = torch.tensor([[0.5, 0.2, 0.3]])
        found = method.loss(torch.Generator().manual_seed(4))
        task, distill = by_hand(method, 4, {"edge-0": 0.5, "edge-1": 0.2, BASE: 0.3})
        expected = 0.7 * task + 0.3 * distill
        for key, value in (("task", task), ("distill", distill), ("loss", expected)):
            assert float(found[key].detach()) == pytest.approx(float(value.detach()), rel=1e-4)
        ours, theirs = gradient(method, found["loss"]), gradient(method, expected)
        assert theirs.norm() > 0 and (ours - theirs).norm() < 1e-3 * theirs.norm()


@pytest.mark.parametrize("kind", ["epsilon", "sample"])
def test_the_task_is_the_models_own_prediction_loss(kind: str) -> None:
    scheduler = DDIMScheduler(prediction_type=kind, clip_sample=False)
    with classroom(family("sd"), recipe(), scheduler=scheduler) as method:
        method.config.caption_dropout = 0.0
        _, conditions, x0, index, noise, _ = drawn(method, 4)
        x_t = scheduler.add_noise(x0, noise, index)
        output = student_alone(method, x_t, index, conditions)
        expected = ((output - (noise if kind == "epsilon" else x0)) ** 2).mean()
        found = method.loss(torch.Generator().manual_seed(4))["task"]
        assert float(found.detach()) == pytest.approx(float(expected.detach()), rel=1e-4)


def test_gamma_zero_is_plain_training_on_the_pictures() -> None:
    with classroom(family("sd"), recipe("gamma=0.0")) as method:
        found = method.loss(torch.Generator().manual_seed(4))
        task, _ = by_hand(method, 4, {})
        assert torch.allclose(gradient(method, found["loss"]), gradient(method, task), atol=1e-6)
        assert float(found["distill"]) == 0


def test_gamma_zero_gives_the_adapter_that_fine_tuning_gives() -> None:
    from fedkd.distillation.distil import distil

    pipe = family("sd")
    chosen = recipe("gamma=0.0", "held_out=0", "teacher_weights=uniform")
    shared = dict(steps=3, batch_size=4, learning_rate=chosen.distillation.learning_rate, caption_dropout=0.1)
    for key, value in shared.items():
        setattr(chosen.finetune, key, value)
        setattr(chosen.distillation, key, value)
    chosen.finetune.lora = chosen.distillation.lora
    plain, _ = finetune(pipe, pictures(0), chosen.finetune, seed=5)
    assert distil(pipe, {BASE: pictures(0)}, {}, chosen, seed=5).student == plain


def test_gamma_one_ignores_the_datas_noise_target() -> None:
    with classroom(family("sd"), recipe("gamma=1.0")) as method:
        found = method.loss(torch.Generator().manual_seed(4))
        _, distill = by_hand(method, 4, {"edge-0": 0.5, "edge-1": 0.5})
        ours = gradient(method, found["loss"])
        assert torch.allclose(ours, gradient(method, distill), atol=1e-5)
        assert not torch.allclose(ours, gradient(method, found["task"]), atol=1e-3)


@pytest.mark.parametrize("form", ["same", "renoise"])
def test_the_gradient_of_sampled_teachers_is_that_of_all_in_the_mean(form: str) -> None:
    """The exact mean: every choice of teachers for the batch, weighted by its probability."""
    with classroom(family("sd"), recipe("gamma=1.0", f"form={form}", "batch_size=2")) as method:
        share = torch.tensor([0.6, 0.3, 0.1])
        _, conditions, x0, index, noise, _ = drawn(method, 2)
        x_t = method.schedule.add_noise(x0, noise, index)

        def distilled(weights: torch.Tensor) -> torch.Tensor:
            own = method.student_x0(x_t, index, conditions)
            batch = Batch(torch.arange(2), x0, conditions, weights)
            return gradient(method, method.distillation(batch, own, x_t, index, torch.Generator().manual_seed(3)))

        everyone = distilled(share.expand(2, 3))
        mean = torch.zeros_like(everyone)
        for first in range(3):
            for second in range(3):
                one = torch.eye(3)[[first, second]]
                mean += share[first] * share[second] * distilled(one)
        assert everyone.norm() > 0 and (mean - everyone).norm() < 1e-4 * everyone.norm()


def test_sampled_batches_ask_one_teacher_a_row_as_often_as_lambda_says() -> None:
    with classroom(family("sd"), recipe("teachers=sampled", "batch_size=2000")) as method:
        method.teachers.table = torch.tensor([[0.6, 0.3, 0.1]])
        weights = method.batch(torch.Generator().manual_seed(0)).weights
        assert torch.equal(weights.sum(1), torch.ones(2000)) and set(weights.unique().tolist()) == {0.0, 1.0}
        assert weights.mean(0).tolist() == pytest.approx([0.6, 0.3, 0.1], abs=0.04)


def test_a_table_of_rows_gives_each_picture_its_own_lambda() -> None:
    with classroom(family("sd"), recipe()) as method:
        method.teachers.table = torch.softmax(torch.randn(6, 3, generator=torch.Generator().manual_seed(0)), 1)
        batch = method.batch(torch.Generator().manual_seed(0))
        assert torch.equal(batch.weights, method.teachers.table[batch.rows])


@pytest.mark.parametrize("distance", ["mse", "huber", "ssim"])
def test_a_student_that_says_what_its_only_teacher_says_has_no_distillation_loss(distance: str) -> None:
    pipe = family("sd")
    with classroom(pipe, recipe("gamma=1.0", f"distance={distance}"), edges=1) as method:
        method.teachers.table = torch.tensor([[0.0, 1.0]])
        for parameter in method.student.parameters:
            parameter.data.zero_()
        assert float(method.loss(torch.Generator().manual_seed(0))["distill"]) == pytest.approx(0, abs=1e-5)


def test_held_out_pictures_are_never_trained_on() -> None:
    with classroom(family("sd"), recipe("batch_size=200")) as method:
        method.lesson.kept = torch.tensor([1, 4])
        assert set(method.batch(torch.Generator().manual_seed(0)).rows.tolist()) == {1, 4}


def test_the_federated_student_is_drawn_as_its_base() -> None:
    with classroom(family("sd"), recipe()) as method:
        drawing = method.drawing()
        assert drawing.scheduler is method.lesson.scheduler and drawing.guidance_scale == method.lesson.guidance_scale
