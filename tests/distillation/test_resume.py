"""A run that was stopped anywhere goes on to bit for bit the student and the curves of an undisturbed one."""

import shutil
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import torch

from fedkd.distillation.course import STAGES, STATE
from fedkd.distillation.distil import Distilled, distil
from fedkd.distillation.teachers import BASE
from fedkd.models.pipeline import denoiser_of
from tests.distillation.classroom import family, pictures, random_adapter, recipe

SETS = {"edge-0": pictures(0), BASE: pictures(9)}
METHODS = ["federated", "progressive", "adversarial", "consistency"]


class Stopped(Exception):
    """What a killed run ends with."""


def run(folder: Path | None, *options: str, stop_after: int | None = None, seed: int = 1) -> Distilled:
    pipe = family("sd")
    shared = ["batch_size=2", "save_every=1", "teacher_weights=provenance", "held_out=0"]

    def after_step(done: int, total: int, losses: dict[str, float]) -> None:
        if done == stop_after:
            raise Stopped

    adapters = {"edge-0": random_adapter(denoiser_of(pipe), 3)}
    return distil(pipe, SETS, adapters, recipe(*shared, *options), seed=seed, folder=folder, after_step=after_step)


def stopped(folder: Path, *options: str, after: list[int]) -> Distilled:
    """The run stopped after each of these steps, and gone on with."""
    for place in after:
        torch.rand(3)
        with pytest.raises(Stopped):
            run(folder, *options, stop_after=place)
    return run(folder, *options)


@cache
def undisturbed(*options: str) -> Distilled:
    """The same run in one go, without a folder; made once."""
    return run(None, *options)


@pytest.fixture(scope="module")
def first_step(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a run of one step; take a copy."""
    folder = tmp_path_factory.mktemp("first-step")
    run(folder, "steps=1")
    return folder


@pytest.fixture(scope="module")
def halved(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Distilled]:
    """The folder of a finished progressive run of three steps, to take a copy of, and what it made."""
    folder = tmp_path_factory.mktemp("halved")
    return folder, run(folder, "method=progressive", "steps=3")


def same(a: Distilled, b: Distilled) -> None:
    assert a.student == b.student
    assert a.curves == b.curves
    assert a.stages == b.stages


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("student", ["lora", "full"])
def test_a_stopped_run_ends_as_an_undisturbed_one(method: str, student: str, tmp_path: Path) -> None:
    options = [f"method={method}", f"student={student}", "ema_decay=0.9", "steps=6"]
    same(stopped(tmp_path, *options, after=[1, 4]), undisturbed(*options))


@pytest.mark.parametrize("method", ["federated", "adversarial"])
def test_without_averages_too(method: str, tmp_path: Path) -> None:
    options = [f"method={method}", "steps=4", "gradient_accumulation_steps=2", "mixed_precision=bf16"]
    same(stopped(tmp_path, *options, after=[3]), undisturbed(*options))


@pytest.mark.parametrize("ema", [0.0, 0.9])
@pytest.mark.parametrize("after", [[2], [3, 4], [5]])
def test_a_run_stopped_at_and_around_a_phase_border_ends_the_same(after: list[int], ema: float, tmp_path: Path) -> None:
    options = ["method=progressive", "steps=6", f"ema_decay={ema}"]  # three phases of two steps
    same(stopped(tmp_path, *options, after=after), undisturbed(*options))


def test_a_run_stopped_between_two_states_does_the_steps_since_the_last_again(tmp_path: Path) -> None:
    options = ["method=progressive", "steps=9", "save_every=2", "ema_decay=0.9"]
    same(stopped(tmp_path, *options, after=[1, 4, 6]), undisturbed(*options))


def test_a_finished_run_gives_its_student_again_without_training(
    halved: tuple[Path, Distilled], tmp_path: Path
) -> None:
    folder = shutil.copytree(halved[0], tmp_path / "run")
    same(run(folder, "method=progressive", "steps=3", stop_after=1), halved[1])


def test_a_folder_changes_nothing(tmp_path: Path) -> None:
    same(run(tmp_path, "steps=2"), undisturbed("steps=2"))


def test_starting_over_does_not_use_the_students_of_the_run_before(
    halved: tuple[Path, Distilled], tmp_path: Path
) -> None:
    options = ["method=progressive", "steps=3"]
    folder = shutil.copytree(halved[0], tmp_path / "run")
    (folder / STATE).unlink()
    same(run(folder, *options, seed=2), run(None, *options, seed=2))


def test_each_halving_leaves_its_student_in_the_folder(halved: tuple[Path, Distilled]) -> None:
    folder, made = halved
    files = {path.name: path.read_bytes() for path in (folder / STAGES).iterdir()}
    assert files == {f"{steps}-steps.safetensors": data for steps, data in made.stages.items()}
    assert sorted(made.stages) == [1, 2] and made.stages[1] == made.student != made.stages[2]


def test_curves_are_named_by_their_phase() -> None:
    curves = undisturbed("method=progressive", "steps=6", "ema_decay=0.0").curves
    assert {key: len(values) for key, values in curves.items()} == {
        "guidance: loss": 2,
        "2 steps: loss": 2,
        "1 step: loss": 2,
    }


@pytest.mark.parametrize("cut", [0, 5, 100, -10])
def test_a_truncated_state_is_one_clear_error(cut: int, first_step: Path, tmp_path: Path) -> None:
    folder = shutil.copytree(first_step, tmp_path / "run")
    state = folder / STATE
    state.write_bytes(state.read_bytes()[:cut])
    with pytest.raises(ValueError, match=r"the saved state .*state\.safetensors' cannot be read.*delete it"):
        run(folder, "steps=2")
    assert not getattr(denoiser_of(family("sd")), "peft_config", None)


def test_a_state_that_was_being_written_is_not_taken_for_one(tmp_path: Path) -> None:
    with pytest.raises(Stopped):
        run(tmp_path, "steps=3", stop_after=2)
    (tmp_path / f"{STATE}.part").write_bytes(b"half")
    same(run(tmp_path, "steps=3"), undisturbed("steps=3"))


@pytest.mark.parametrize(
    "options", [["lora.rank=3"], ["student=full"], ["ema_decay=0.9"], ["method=adversarial"], ["method=progressive"]]
)
def test_a_state_of_another_recipe_is_refused(options: list[str], first_step: Path, tmp_path: Path) -> None:
    folder = shutil.copytree(first_step, tmp_path / "run")
    with pytest.raises(ValueError, match="state"):
        run(folder, "steps=3", *options)


def test_the_state_is_safetensors_alone(halved: tuple[Path, Distilled]) -> None:
    files: Any = [path for path in halved[0].rglob("*") if path.is_file()]
    assert files and {path.suffix for path in files} == {".safetensors"}
