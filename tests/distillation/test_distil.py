"""A student by every method on every family: it learns, it is finite, and the pipeline ends as it was."""

import copy
from typing import Any

import pytest
import torch
from safetensors.torch import load

from fedkd.distillation.distil import Distilled, distil
from fedkd.distillation.student import install_student, is_full
from fedkd.distillation.teachers import BASE
from fedkd.models.adapter import AdapterError
from fedkd.models.conditioning import encode_prompts, predict
from fedkd.models.pipeline import denoiser_of
from tests.distillation.classroom import classroom, family, gradient, pictures, random_adapter, recipe

METHODS = ["federated", "progressive", "adversarial", "consistency"]
SETS = {"edge-0": pictures(0), BASE: pictures(9)}


def taught(pipe: Any, *options: str, seed: int = 1, **given: Any) -> Distilled:
    adapters = {"edge-0": random_adapter(denoiser_of(pipe), 3)}
    chosen = recipe("steps=3", "batch_size=2", "teacher_weights=provenance", *options)
    return distil(pipe, SETS, adapters, chosen, seed=seed, **given)


def snapshot(pipe: Any) -> dict[str, torch.Tensor]:
    return {key: value.clone() for key, value in denoiser_of(pipe).state_dict().items()}


def learned(data: bytes, before: dict[str, torch.Tensor]) -> bool:
    tensors = load(data)
    assert all(torch.isfinite(tensor).all() for tensor in tensors.values())
    if is_full(data):
        assert list(sorted(tensors)) == sorted(before)
        return any(not torch.equal(tensors[key], before[key].float()) for key in before)
    return any(tensor.abs().max() > 0 for key, tensor in tensors.items() if ".lora_B." in key)


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize(("name", "student"), [("sd", "lora"), ("sdxl", "lora"), ("sd3", "lora"), ("sd", "full")])
def test_every_method_teaches_a_student_and_leaves_the_pipeline_as_it_was(name: str, method: str, student: str) -> None:
    pipe = family(name)
    before, scheduler = snapshot(pipe), pipe.scheduler
    flags = {key: p.requires_grad for key, p in denoiser_of(pipe).named_parameters()}
    made = taught(pipe, f"method={method}", f"student={student}")
    after = denoiser_of(pipe).state_dict()
    assert list(after) == list(before) and all(torch.equal(after[key], before[key]) for key in before)
    assert pipe.scheduler is scheduler and not denoiser_of(pipe).training
    assert {key: p.requires_grad for key, p in denoiser_of(pipe).named_parameters()} == flags
    assert is_full(made.student) == (student == "full") and learned(made.student, before)
    assert sum(made.teacher_weights.values()) == pytest.approx(1, abs=1e-3) and not made.left_out
    assert all(torch.isfinite(torch.tensor(curve)).all() for curve in made.curves.values())


@pytest.mark.parametrize("student", ["lora", "full"])
@pytest.mark.parametrize("method", METHODS)
def test_a_bfloat16_base_trains_a_float32_student(method: str, student: str) -> None:
    pipe = copy.copy(family("sd"))
    for key in ("unet", "vae", "text_encoder"):
        setattr(pipe, key, copy.deepcopy(getattr(pipe, key)).to(torch.bfloat16))
    before = snapshot(pipe)
    made = taught(pipe, f"method={method}", f"student={student}")
    assert learned(made.student, before)
    assert {tensor.dtype for tensor in load(made.student).values()} == {torch.float32}
    assert all(torch.isfinite(torch.tensor(curve)).all() for curve in made.curves.values())


@pytest.mark.parametrize("option", ["distance=ssim", "distance=huber", "form=renoise", "mixed_precision=bf16"])
def test_a_bfloat16_base_works_with_every_option(option: str) -> None:
    pipe = copy.copy(family("sd"))
    for key in ("unet", "vae", "text_encoder"):
        setattr(pipe, key, copy.deepcopy(getattr(pipe, key)).to(torch.bfloat16))
    made = taught(pipe, "steps=1", option)
    assert torch.isfinite(torch.tensor(made.curves["distill"])).all()


@pytest.mark.parametrize("weights", ["uniform", "size", "validation", "provenance", "confidence", "fixed"])
def test_every_lambda_teaches(weights: str) -> None:
    pipe = family("sd")
    fixed = {"edge-0": 0.4, BASE: 0.6}
    made = taught(pipe, "steps=1", f"teacher_weights={weights}", "teachers=sampled", fixed=fixed)
    assert sum(made.teacher_weights.values()) == pytest.approx(1, abs=1e-3)
    assert learned(made.student, {})


@pytest.mark.parametrize("method", METHODS)
def test_the_student_depends_on_inputs_and_seed_alone(method: str) -> None:
    pipe = family("sd")
    students = []
    for seed in (1, 1, 2):
        torch.rand(seed + len(students))  # the state of the global generator is nothing to it
        students.append(taught(pipe, f"method={method}", seed=seed).student)
    assert students[0] == students[1] and students[0] != students[2]


def test_the_callers_random_numbers_go_on_as_if_nothing_had_been_taught() -> None:
    pipe = family("sd")
    torch.manual_seed(5)
    expected = torch.rand(3)
    torch.manual_seed(5)
    taught(pipe, "steps=1")
    assert torch.equal(torch.rand(3), expected)


def test_whole_models_teach_beside_adapters() -> None:
    pipe = family("sd")
    whole = copy.deepcopy(denoiser_of(pipe))
    with torch.no_grad():
        for parameter in whole.parameters():
            parameter.mul_(0.9)
    sets = SETS | {"whole": pictures(4)}
    adapters = {"edge-0": random_adapter(denoiser_of(pipe), 3)}
    for method in METHODS:
        chosen = recipe("steps=3", "batch_size=2", "teacher_weights=provenance", f"method={method}", "held_out=0")
        made = distil(pipe, sets, adapters, chosen, seed=0, modules={"whole": whole})
        assert made.teacher_weights == {"edge-0": 0.3333, "whole": 0.3333, BASE: 0.3333}
    made = distil(pipe, {"whole": pictures(4)}, {}, recipe("method=adversarial"), seed=0, modules={"whole": whole})
    assert made.teacher_weights == {"whole": 1.0}


@pytest.mark.parametrize("method", METHODS)
def test_gradient_checkpointing_changes_no_gradient(method: str) -> None:
    pipe = family("sd")
    found = []
    for on in (False, True):
        with classroom(pipe, recipe(f"method={method}")) as lesson:
            if on:
                lesson.student.module.enable_gradient_checkpointing()
            lesson.setup(0)
            found.append(gradient(lesson, lesson.loss(torch.Generator().manual_seed(0))["loss"]))
            pipe.unet.disable_gradient_checkpointing()
    assert found[0].norm() > 0 and torch.allclose(*found, atol=1e-6)


@pytest.mark.parametrize("student", ["lora", "full"])
def test_an_installed_student_says_what_it_said_when_it_was_taught(student: str) -> None:
    pipe = copy.copy(family("sd"))
    pipe.unet = copy.deepcopy(pipe.unet)
    x_t, t = torch.randn(2, 4, 8, 8), torch.tensor([10, 900])
    conditions = encode_prompts(pipe, ["a", "b"])
    said = []

    def watch(step: int, method: Any) -> None:
        with torch.no_grad():
            said.append(method.student.predict(x_t, t, conditions))

    made = taught(pipe, f"student={student}", watch=watch)
    install_student(pipe, made.student)
    with torch.no_grad():
        assert torch.allclose(predict(pipe.unet, x_t, t, conditions), said[-1], atol=1e-5)


def test_a_full_student_of_another_model_is_refused() -> None:
    made = taught(family("sd"), "steps=1", "student=full")
    with pytest.raises(AdapterError, match="does not fit"):
        install_student(family("sdxl"), made.student)


def test_the_average_of_weights_is_the_student_where_it_is_asked_for() -> None:
    plain, averaged = (taught(family("sd"), f"ema_decay={decay}").student for decay in (0.0, 0.9))
    assert plain != averaged and learned(averaged, {})
