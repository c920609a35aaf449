"""A distillation job draws, trains, compares and reports; what is on disk is whole, and a stopped one goes on."""

from __future__ import annotations

import json
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image
from safetensors.torch import load

from fedkd.data.packing import unpack_dataset
from fedkd.data.sources import DataError, to_dataset
from fedkd.distillation.distil import UNKNOWN, distil
from fedkd.distillation.jobs.faculty import Faculty, assemble
from fedkd.distillation.jobs.job import run_job
from fedkd.distillation.jobs.lessons import check_source, learned_sets, prompt_lines, sheet_prompts
from fedkd.distillation.jobs.showing import installed
from fedkd.distillation.jobs.tracking import check_tracker, flat
from fedkd.distillation.student import Student, install_student
from fedkd.distillation.teachers import BASE
from fedkd.evaluation.steps import Contender, Part, beside, draw_sheets, score
from fedkd.models.adapter import remove_adapters
from fedkd.models.pipeline import load_pipeline
from fedkd.recipe import load_recipe
from fedkd.training.loop import TrainingError
from tests.distillation.classroom import pictures, random_adapter
from tests.distillation.small_job import adapter_at, job


class Spy:
    """A view that remembers."""

    def __init__(self) -> None:
        self.titles: list[str] = []
        self.steps: list[int] = []

    def begin(self, title: str) -> None:
        self.titles.append(title)

    def progress(self, done: int, total: int) -> None:
        if self.titles[-1].startswith("train"):
            self.steps.append(done)

    def losses(self, losses: dict[str, float]) -> None:
        assert losses["loss"] == losses["loss"]

    def say(self, line: str) -> None:
        self.titles.append(line)


def folder_of_pictures(folder: Path) -> Path:
    folder.mkdir()
    for i in range(6):
        Image.effect_noise((32, 32), 40 + i).convert("RGB").save(folder / f"{i}.png")
        (folder / f"{i}.txt").write_text(f"a red {'zero' if i % 2 else 'seven'} on a blue background")
    return folder


def test_each_teacher_draws_its_concepts_once(tiny_pipeline: Any, tiny_folder: Path, tmp_path: Path) -> None:
    adapter = adapter_at(tmp_path / "edge.safetensors", tiny_pipeline)
    recipe = job(tmp_path, tiny_folder, [{}, {"adapter": str(adapter), "concepts": ["seven"]}])
    faculty, view = assemble(recipe, tiny_pipeline), Spy()
    sets = learned_sets(tiny_pipeline, faculty, recipe, tmp_path / "run", view)
    assert {name: len(pictures) for name, pictures in sets.items()} == {BASE: 6, "edge": 6}
    assert all("seven" in caption for caption in sets["edge"]["caption"])
    assert {caption.split()[1] for caption in sets[BASE]["caption"]} == {"zero", "one"}
    again = learned_sets(tiny_pipeline, faculty, recipe, tmp_path / "run", view)
    assert len(view.titles) == 2
    assert again["edge"][0]["image"].tobytes() == sets["edge"][0]["image"].tobytes()


def test_prompts_of_a_file_are_drawn_in_equal_shares(tiny_pipeline: Any, tiny_folder: Path, tmp_path: Path) -> None:
    (tmp_path / "prompts.txt").write_text("".join(f"picture {i}\n\n" for i in range(8)))
    adapter = adapter_at(tmp_path / "edge.safetensors", tiny_pipeline)
    data = {"source": "prompts", "path": str(tmp_path / "prompts.txt")}
    recipe = job(tmp_path, tiny_folder, [{}, {"adapter": str(adapter)}], data=data, distillation={"pictures": 4})
    sets = learned_sets(tiny_pipeline, assemble(recipe, tiny_pipeline), recipe, tmp_path / "run", Spy())
    assert sets[BASE]["caption"][:] == [f"picture {i}" for i in range(4)]
    assert sets["edge"]["caption"][:] == [f"picture {i}" for i in range(4, 8)]
    assert [prompt for _, prompt in sheet_prompts(recipe, Faculty(), sets)] == [f"picture {i}" for i in range(8)]


def test_pictures_from_elsewhere_belong_to_a_single_teacher_or_to_nobody(tiny_folder: Path, tmp_path: Path) -> None:
    data = {"source": "folder", "path": str(folder_of_pictures(tmp_path / "pictures"))}
    one = job(tmp_path, tiny_folder, [{}], data=data)
    check_source(one)
    assert set(learned_sets(None, Faculty(names=[BASE]), one, tmp_path, Spy())) == {BASE}  # type: ignore[arg-type]
    two = job(tmp_path, tiny_folder, [{}, {"adapter": "x"}], data=data, distillation={"teacher_weights": "confidence"})
    sets = learned_sets(None, Faculty(names=[BASE, "x"]), two, tmp_path, Spy())  # type: ignore[arg-type]
    assert {name: len(pictures) for name, pictures in sets.items()} == {UNKNOWN: 6, BASE: 0}
    with pytest.raises(DataError, match=r"distillation.teacher_weights=provenance .* use data.source=prompts"):
        check_source(job(tmp_path, tiny_folder, [{}, {"adapter": "x"}], data=data))


@pytest.mark.parametrize("text", [None, "\n \n"])
def test_a_prompt_file_without_prompts_is_refused(text: str | None, tmp_path: Path) -> None:
    if text is not None:
        (tmp_path / "p.txt").write_text(text)
    with pytest.raises(DataError, match=r"data.path=.*give a text file with a prompt a line"):
        prompt_lines(str(tmp_path / "p.txt"))


def test_nothing_to_draw_is_refused(tiny_folder: Path, tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"data.source=prompts has nothing to draw"):
        check_source(job(tmp_path, tiny_folder, [{}], prompts={"known": [], "taught": []}))


def test_a_job_leaves_everything_that_it_promises(tiny_pipeline: Any, tiny_folder: Path, tmp_path: Path) -> None:
    adapter = adapter_at(tmp_path / "edge.safetensors", tiny_pipeline)
    recipe = job(
        tmp_path,
        tiny_folder,
        [{}, {"adapter": str(adapter), "concepts": ["seven"]}],
        distillation={"method": "progressive", "steps": 6, "sample_every": 3},
        evaluation={"classifier": "reference-classifier", "samples_per_concept": 1},
    )
    run, view = tmp_path / "run", Spy()
    report = run_job(recipe, run, view=view, command="fedkd distill job.yaml")
    assert view.steps == [1, 2, 3, 4, 5, 6]
    for name in ("recipe.yaml", "state.safetensors", "student.safetensors", "pytorch_lora_weights.safetensors"):
        assert (run / name).stat().st_size, name
    assert {path.name for path in (run / "pictures").iterdir()} == {"base.parquet", "edge.parquet"}
    assert len(unpack_dataset((run / "pictures" / "edge.parquet").read_bytes())) == 6
    shots = {path.name for path in (run / "samples").iterdir()}
    assert shots == {"step-000003.png", "step-000006.png", *(f"steps-{n}.png" for n in (1, 2, 32))}
    assert not list(run.rglob("*.part"))

    told = json.loads((run / "report.json").read_text())
    assert told["steps"] == report["steps"]
    assert {(row["model"], row["steps"]) for row in told["steps"]} == {
        ("student", 1), ("student", 2), ("teacher", 1), ("teacher", 2), ("teacher", 32),
        ("teacher, no guidance", 1), ("teacher, no guidance", 2),
    }  # fmt: skip
    assert [row["steps"] for row in told["steps"] if row["made_for"]] == [1, 2]
    assert [t["name"] for t in told["teachers"]] == [BASE, "edge"] and told["teachers"][1]["weight"] == 0.5
    assert told["sampling"]["num_inference_steps"] == 1 and told["recipe"]["distillation"]["method"] == "progressive"
    page = (run / "report.html").read_text()
    assert page.count("data:image/png;base64,") == 5
    assert "seven" in page and "Losses, 1 step" in page and "http" not in page.split("<pre>from")[0]

    pipe = load_pipeline(str(run / "checkpoint"))
    assert type(pipe.scheduler).__name__ == "DDIMScheduler"
    install_student(tiny := load_pipeline(str(tiny_folder)), (run / "student.safetensors").read_bytes())
    for key, tensor in tiny.unet.state_dict().items():
        torch.testing.assert_close(pipe.unet.state_dict()[key], tensor.half().float())
    plain = load_pipeline(str(tiny_folder))
    plain.load_lora_weights(str(run / "pytorch_lora_weights.safetensors"))
    told_to = torch.ones(1, 4, 8, 8), torch.tensor([3]), torch.ones(1, 4, 32)
    with torch.no_grad():
        torch.testing.assert_close(plain.unet(*told_to).sample, tiny.unet(*told_to).sample, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("student", ["lora", "full"])
def test_gradient_checkpointing_changes_memory_and_not_the_student(
    student: str, tiny_pipeline: Any, tiny_folder: Path, tmp_path: Path
) -> None:
    """The adversarial method asks teachers with gradients through their input, adapters row by row."""
    edge, found = random_adapter(tiny_pipeline.unet, 1, 0.05), []
    for checkpointing in (False, True):
        settings = {"method": "adversarial", "student": student, "steps": 2, "gradient_accumulation_steps": 2}
        recipe = job(tmp_path, tiny_folder, [{}], distillation={**settings, "gradient_checkpointing": checkpointing})
        sets = {BASE: pictures(0), "edge": pictures(1)}
        found.append(load(distil(tiny_pipeline, sets, {"edge": edge}, recipe, seed=0).student))
        assert not any(getattr(module, "gradient_checkpointing", False) for module in tiny_pipeline.unet.modules())
    for key, tensor in found[0].items():
        torch.testing.assert_close(tensor, found[1][key], rtol=1e-3, atol=1e-4)


def test_a_student_that_was_installed_leaves_the_pipeline_as_it_was(tiny_folder: Path, tmp_path: Path) -> None:
    recipe = job(tmp_path, tiny_folder, [{}])
    pipe = load_pipeline(str(tiny_folder))
    before = {key: tensor.clone() for key, tensor in pipe.unet.state_dict().items()}
    student = Student(pipe.unet, recipe.distillation, seed=1)
    for parameter in student.parameters:
        parameter.data += 0.3
    data = student.to_bytes()
    remove_adapters(pipe.unet)
    with installed(pipe, data):
        assert any(not torch.equal(tensor, before[key]) for key, tensor in pipe.unet.state_dict().items())
    after = pipe.unet.state_dict()
    assert after.keys() == before.keys() and all(torch.equal(after[key], before[key]) for key in before)


def test_several_teachers_are_scored_on_their_own_concepts_each(tiny_pipeline: Any, tmp_path: Path) -> None:
    recipe = load_recipe("quickstart", ["evaluation.samples_per_concept=1"])
    parts = [Part(lambda steps: nullcontext(tiny_pipeline), ["zero", "one"])]
    parts.append(Part(lambda steps: nullcontext(tiny_pipeline), ["one", "seven"]))
    rows = score(Contender("teacher", parts, [2, 1, 2], 2.0, most_steps=1), recipe, seed=0)
    assert [row["steps"] for row in rows] == [1]
    assert set(rows[0]["concepts"]) == {"zero", "one", "seven"}
    assert rows[0]["taught"] == rows[0]["concepts"]["seven"]


def test_sheets_show_both_from_one_noise(tiny_pipeline: Any, tmp_path: Path) -> None:
    part = Part(lambda steps: nullcontext(tiny_pipeline), ["zero"])
    same = Contender("student", [part], [1], 2.0), Contender("teacher", [part, part], [1, 2], 2.0)
    sheets = draw_sheets(*same, [("zero", "a zero"), ("seven", "a seven")], tmp_path, seed=0)
    assert [sheet["steps"] for sheet in sheets] == [1, 2]
    page = Image.open(tmp_path / "steps-1.png")
    half = (page.width - 8) // 2
    assert page.crop((0, 0, half, page.height)).tobytes() == page.crop((half + 8, 0, page.width, page.height)).tobytes()
    assert beside(None, [Image.new("RGB", (8, 8))]).size[0] > 0


def test_a_tracker_that_is_not_installed_is_named_with_the_fix(tiny_folder: Path, tmp_path: Path) -> None:
    check_tracker("")
    with pytest.raises(TrainingError, match=r"run.tracker=swallow.*pip install 'fedkd\[swallow\]'"):
        check_tracker("swallow")
    told = flat(job(tmp_path, tiny_folder, [{}]))
    assert told["distillation.lora.rank"] == 2 and all(isinstance(v, str | int | float) for v in told.values())


def test_an_empty_set_is_still_a_set() -> None:
    assert list(to_dataset([])["caption"]) == []


def test_a_tracker_gets_the_losses_of_every_step(tiny_folder: Path, tmp_path: Path) -> None:
    pytest.importorskip("tensorboard")
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    recipe = job(tmp_path, tiny_folder, [{"name": "base"}], run={"name": "job", "tracker": "tensorboard"})
    run = tmp_path / "run"
    run_job(recipe, run)
    found = [EventAccumulator(str(file)).Reload() for file in (run / "tracker").rglob("events.out.tfevents.*")]
    (losses,) = [events for events in found if "loss" in events.Tags()["scalars"]]
    assert [point.step for point in losses.Scalars("loss")] == [1, 2, 3, 4]
