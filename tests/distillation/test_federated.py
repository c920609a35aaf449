"""The student learns from several adapters on one base, deterministically, and bad teachers are left out."""

from typing import Any

import numpy as np
import pytest
import torch
from datasets import Dataset
from PIL import Image
from safetensors.torch import load, save

from fedkd.data.sources import to_dataset
from fedkd.distillation.federated import distil, distillation_loss, student_losses
from fedkd.distillation.teachers import Teachers
from fedkd.models.adapter import add_adapter, load_adapter, remove_adapters
from fedkd.recipe import Recipe, load_recipe
from fedkd.training.examples import encode_examples
from fedkd.training.finetune import finetune
from fedkd.training.noise import NoiseSchedule


def pictures(seed: int, count: int = 6) -> Dataset:
    rng = np.random.default_rng(seed)
    return to_dataset(
        [
            {
                "image": Image.fromarray(rng.integers(0, 256, (32, 32, 3), dtype=np.uint8)),
                "caption": f"picture {i % 2}",
            }
            for i in range(count)
        ]
    )


def recipe(*overrides: str) -> Recipe:
    small = [
        "distillation.steps=3",
        "distillation.batch_size=4",
        "distillation.lora.rank=2",
        "finetune.steps=3",
    ]
    return load_recipe("quickstart", [*small, "finetune.batch_size=4", "finetune.lora.rank=2", *overrides])


@pytest.fixture(scope="module")
def adapters(tiny_pipeline: Any) -> dict[str, bytes]:
    config = recipe().finetune
    return {f"edge-{i}": finetune(tiny_pipeline, pictures(i), config, seed=i)[0] for i in range(2)}


SETS = {"edge-0": pictures(0), "edge-1": pictures(1)}


@pytest.mark.parametrize("weights", ["uniform", "size", "validation", "provenance", "confidence"])
@pytest.mark.parametrize("teachers", ["all", "sampled"])
def test_every_lambda_trains_a_student_and_leaves_the_base_alone(
    tiny_pipeline: Any, adapters: dict[str, bytes], weights: str, teachers: str
) -> None:
    before = {key: value.clone() for key, value in tiny_pipeline.unet.state_dict().items()}
    chosen = recipe(f"distillation.teacher_weights={weights}", f"distillation.teachers={teachers}")
    student, report = distil(tiny_pipeline, SETS, adapters, pictures(9), chosen, seed=1)
    after = tiny_pipeline.unet.state_dict()
    assert list(after) == list(before) and all(torch.equal(after[key], before[key]) for key in before)
    assert any(tensor.abs().max() > 0 for key, tensor in load(student).items() if ".lora_B." in key)
    assert sum(report["teacher_weights"].values()) == pytest.approx(1, abs=1e-3)


@pytest.mark.parametrize(
    "options", [("form=renoise",), ("distance=huber",), ("distance=ssim",), ("gamma=0",)]
)
def test_every_form_and_distance_gives_a_finite_loss(
    tiny_pipeline: Any, adapters: dict[str, bytes], options: tuple[str, ...]
) -> None:
    chosen = recipe(*(f"distillation.{option}" for option in options))
    _, report = distil(tiny_pipeline, SETS, adapters, pictures(9), chosen, seed=1)
    assert np.isfinite(report["task"] + report["distill"]).all()


def test_the_student_depends_on_inputs_and_seed_alone(tiny_pipeline: Any, adapters: dict[str, bytes]) -> None:
    students = [distil(tiny_pipeline, SETS, adapters, pictures(9), recipe(), seed=s)[0] for s in (1, 1, 2)]
    assert students[0] == students[1]
    assert students[0] != students[2]


def test_a_teacher_that_is_not_finite_is_left_out_and_named(
    tiny_pipeline: Any, adapters: dict[str, bytes]
) -> None:
    broken = {key: value * float("nan") for key, value in load(adapters["edge-0"]).items()}
    spoilt = adapters | {"edge-0": save(broken, metadata={"lora": '{"r": 2}'})}
    _, report = distil(tiny_pipeline, SETS, spoilt, pictures(9), recipe(), seed=1)
    assert list(report["left_out"]) == ["edge-0"] and "not finite" in report["left_out"]["edge-0"]
    with pytest.raises(ValueError, match="no edge's adapter can teach"):
        distil(tiny_pipeline, {"edge-0": SETS["edge-0"]}, spoilt, pictures(9), recipe(), seed=1)


@pytest.fixture
def classroom(tiny_pipeline: Any, adapters: dict[str, bytes]) -> Any:
    """Teachers and a student with random weights on the tiny base."""
    unet, schedule = tiny_pipeline.unet, NoiseSchedule.of(tiny_pipeline.scheduler)
    generator = torch.Generator().manual_seed(3)
    for name, data in adapters.items():
        load_adapter(unet, data, name)
        for key, parameter in unet.named_parameters():
            if f".{name}." in key:
                parameter.data = torch.randn(parameter.shape, generator=generator) * 0.3
    parameters = add_adapter(unet, "student", recipe().distillation.lora, seed=0)
    teachers = Teachers(unet, sorted(adapters), schedule)
    yield tiny_pipeline, schedule, teachers, parameters
    remove_adapters(unet)


def gradient(parameters: list[torch.nn.Parameter], loss: torch.Tensor) -> torch.Tensor:
    return torch.cat(
        [g.flatten() for g in torch.autograd.grad(loss, parameters, allow_unused=True) if g is not None]
    )


def test_the_distillation_term_moves_the_student(classroom: Any) -> None:
    pipe, schedule, teachers, parameters = classroom
    config = recipe("distillation.gamma=1.0", "distillation.teacher_weights=uniform").distillation
    examples = encode_examples(pipe, pictures(0), 32)
    source = torch.zeros(6, dtype=torch.long)
    teachers.set_weights(config, examples, source, sizes=[6, 6], seed=0)
    losses = student_losses(
        pipe, config, schedule, 0, teachers=teachers, examples=examples, source=source, seed=0
    )
    assert float(losses["loss"]) == pytest.approx(float(losses["distill"]))
    losses["loss"].backward()
    assert any(p.grad is not None and p.grad.abs().max() > 0 for p in parameters)


def test_sampled_teachers_have_the_gradient_of_all_in_the_mean(classroom: Any) -> None:
    pipe, schedule, teachers, parameters = classroom
    examples = encode_examples(pipe, pictures(0), 32)
    source = torch.zeros(6, dtype=torch.long)
    x0 = examples.latents
    index = torch.tensor([100, 250, 400, 550, 700, 850])
    x_t = schedule.add_noise(x0, torch.randn(x0.shape, generator=torch.Generator().manual_seed(0)), index)
    conditions = {key: value[examples.caption] for key, value in examples.conditions.items()}
    rows = torch.arange(6)

    def grad(kind: str, seed: int) -> torch.Tensor:
        config = recipe(f"distillation.teachers={kind}", "distillation.teacher_weights=uniform").distillation
        teachers.set_weights(config, examples, source, sizes=[6, 6], seed=0)
        pipe.unet.set_adapter("student")
        from fedkd.models.conditioning import predict

        x0_hat = schedule.predicted_x0(predict(pipe.unet, x_t, index, conditions), x_t, index)
        generator = torch.Generator().manual_seed(seed)
        loss = distillation_loss(
            config, schedule, x0_hat, x_t, index, conditions, rows, teachers, source, generator, pipe
        )
        pipe.unet.set_adapter("student")
        return gradient(parameters, loss)

    exact = grad("all", 0)
    draws = torch.stack([grad("sampled", seed) for seed in range(40)])
    error = (draws.mean(0) - exact).norm() / exact.norm()
    single = (draws - exact).norm(dim=1).mean() / exact.norm()
    assert error < 3 * single / 40**0.5
