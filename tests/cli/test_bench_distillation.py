"""`fedkd bench distillation`: cells are measured once, regimes change one thing, and verdicts follow figures."""

import copy
import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from fedkd.cli.benchmarks import distillation, few_step, regimes, step_cost, students
from fedkd.cli.benchmarks.cells import Cell, carry_out_all
from fedkd.cli.benchmarks.materials import Materials, gather, pipeline, wearing
from fedkd.cli.benchmarks.request import Request
from fedkd.cli.benchmarks.result import write
from fedkd.cli.benchmarks.tables import result_of
from fedkd.data.captions import concept_of
from fedkd.recipe import load_recipe

SMALL = [
    "data.max_images=16",
    "synthesis.personal_steps=1",
    "synthesis.samples=4",
    "synthesis.num_inference_steps=1",
    "synthesis.min_distance=0",
    "finetune.steps=2",
    "distillation.steps=2",
    "distillation.batch_size=4",
    "distillation.replay=7",
    "evaluation.samples_per_concept=1",
    "evaluation.num_inference_steps=1",
    "model.num_inference_steps=1",
]
KNOWN_ROW = "student, lambda provenance, all"


@pytest.fixture(scope="module")
def request_(tmp_path_factory: pytest.TempPathFactory) -> Request:
    return Request("distillation", quick=True, out=tmp_path_factory.mktemp("bench"), overrides=SMALL)


@pytest.fixture(scope="module")
def materials(request_: Request) -> Materials:
    distillation.carry_out(request_, (0, distillation.MATERIALS))
    folder = distillation.folder_of(request_, 0) / distillation.MATERIALS
    return gather(distillation.recipe_of(request_, 0), folder, pytest.fail)


def test_materials_are_made_once_and_complete(request_: Request, materials: Materials) -> None:
    assert set(materials.sets) == set(materials.adapters) == {"edge-0", "edge-1"}
    assert len(materials.replay) == 7 and len(materials.shares) == 4
    concepts = materials.concepts(distillation.recipe_of(request_, 0))
    assert {value for values in concepts.values() for value in values} == {"seven", "eight", "nine"}


def test_a_student_is_measured_once_and_again_only_for_another_recipe(request_: Request, materials: Materials) -> None:
    cell = students.cells(distillation.recipe_of(request_, 0), distillation.folder_of(request_, 0))[KNOWN_ROW]
    facts = distillation.carry_out(request_, (0, cell.name))
    assert 0 <= facts["accuracy"] <= 1 and facts["steps"] == 2 and facts["seconds"] > 0
    written = cell.path.stat().st_mtime_ns
    assert distillation.carry_out(request_, (0, cell.name)) == facts
    assert cell.path.stat().st_mtime_ns == written
    changed = replace(cell, recipe=replace(cell.recipe, description="another"))
    assert cell.kept() and changed.kept() is None
    assert not list(cell.path.parent.glob("*.part"))


def test_a_full_few_step_student_is_judged_at_every_step_count_and_the_base_comes_back(
    request_: Request, materials: Materials
) -> None:
    recipe = distillation.recipe_of(request_, 0)
    weights = {k: v.clone() for k, v in pipeline(recipe).unet.state_dict().items()}
    cell = few_step.cells(recipe, distillation.folder_of(request_, 0), True)["consistency"]
    short = replace(cell.recipe, distillation=replace(cell.recipe.distillation, steps=2, batch_size=4))
    facts = replace(cell, recipe=short).carry_out()
    assert "failed" not in facts and all(0 <= facts[str(steps)]["accuracy"] <= 1 for steps in few_step.STEPS)
    assert all(facts[str(steps)]["fid"] > 0 for steps in few_step.STEPS)
    after = pipeline(recipe).unet.state_dict()
    assert after.keys() == weights.keys() and all((after[k] == weights[k]).all() for k in weights)


def test_a_worn_adapter_comes_off_even_after_a_mistake(request_: Request, materials: Materials) -> None:
    pipe = pipeline(distillation.recipe_of(request_, 0))
    own = pipe.scheduler
    with pytest.raises(KeyError), wearing(pipe, materials.adapters["edge-0"], scheduler=copy.deepcopy(own)):
        raise KeyError
    assert pipe.scheduler is own and not getattr(pipe.unet, "peft_config", None)


def test_regimes_change_one_thing(request_: Request, materials: Materials) -> None:
    recipe = distillation.recipe_of(request_, 0)
    few = regimes.few_pictures(recipe, materials)
    assert all(len(few.sets[n]) == min(regimes.PICTURES, len(s)) for n, s in materials.sets.items())
    assert few.adapters == materials.adapters and few.replay is materials.replay
    noisy = regimes.noisy_captions(recipe, materials)
    for name, before in materials.sets.items():
        pairs = list(zip(before["caption"], noisy.sets[name]["caption"], strict=True))
        other = [(a, b) for a, b in pairs if concept_of(recipe.prompts, a) != concept_of(recipe.prompts, b)]
        assert len(other) == round(regimes.NOISE * len(pairs)) == sum(a != b for a, b in pairs)
        assert noisy.sets[name].features == before.features
    weak = regimes.uneven_edges(recipe, materials)
    assert weak.adapters["edge-0"] == materials.adapters["edge-0"]
    assert weak.adapters["edge-1"] != materials.adapters["edge-1"]
    cells = regimes.cells(recipe, distillation.folder_of(request_, 0))
    assert cells[regimes.FEW_STEPS, "0"].recipe.distillation.steps == 1


def test_a_training_that_goes_out_of_bounds_is_left_out_and_tried_again(tmp_path: Path) -> None:
    def measure(_: Cell) -> dict[str, Any]:
        raise ValueError("the loss is\nnot finite")

    cell = Cell("x", load_recipe("quickstart"), measure, tmp_path)
    assert cell.carry_out() == {"failed": "the loss is not finite"} and cell.kept() is None


def square(key: int) -> dict[str, Any]:
    return {"square": key * key}


def test_several_processes_give_what_one_gives() -> None:
    seen: list[int] = []
    for jobs in (1, 2):
        found = carry_out_all([1, 2, 3], square, jobs=jobs, threads=1, say=lambda key, _: seen.append(key))
        assert {key: facts["square"] for key, facts in found.items()} == {1: 1, 2: 4, 3: 9}
    assert sorted(seen) == [1, 1, 2, 2, 3, 3]


@pytest.mark.parametrize(
    ("half", "says"),
    [([0.8, 0.82, 0.81], "earns its place"), ([0.6, 0.61, 0.6], "is better"), ([0.6, 0.8, 0.71], "no difference")],
)
def test_the_verdict_on_gamma_is_paired_and_weighs_the_spread(half: list[float], says: str) -> None:
    told = regimes.verdict("few steps", {"0": [0.7, 0.7, 0.7], "0.5": half, "0.9": [0.5, 0.5, 0.5]})
    assert says in told and "gamma 0.5" in told
    assert "no verdict" in regimes.verdict("few steps", {"0": [0.7], "0.5": [0.9], "0.9": [0.8]})
    assert "not measured" in regimes.verdict("few steps", {"0": [], "0.5": [], "0.9": []})


def invented(request: Request, seeds: list[int], student: float) -> dict[Any, dict[str, Any]]:
    """Figures for every cell: base 0.7, centralised 0.95, teachers 0.9 at 32 steps."""
    found: dict[Any, dict[str, Any]] = {}
    for seed in seeds:
        found[seed, distillation.MATERIALS] = {"concepts": {"edge-0": ["seven", "eight"], "edge-1": ["nine", "seven"]}}
        for name in distillation.plan(request, seed):
            value = 0.7 if name == "base" else 0.95 if name.startswith("central") else 0.8
            value = student if name.startswith("student") else value
            concepts = dict.fromkeys(("seven", "eight", "nine"), value)
            found[seed, name] = {"accuracy": value, "known": value, "taught": value, "concepts": concepts, "steps": 300}
            if name.startswith("few-step"):
                four = {str(s): {"accuracy": 0.9, "fid": 1.0, "kid": 0.1} for s in (*few_step.STEPS, 32)}
                found[seed, name] = {"fid": 0.5, "kid": 0.0, **four}
    for what, variant in step_cost.keys(request):
        facts = {"1": 0.1, "2": 0.11, "tensor_bytes": 1e6, "resident_bytes": 2e6, "resident_before_bytes": 1e6}
        found[0, f"step/{what}/{variant}"] = facts | {"parameter_bytes": 5e5}
    return found


def test_the_promises_follow_the_figures(request_: Request, tmp_path: Path) -> None:
    good = result_of(request_, [0], invented(request_, [0], 0.94))
    assert all(shown.holds for shown in good.shows), [s.line for s in good.shows if not s.holds]
    assert good.shows[0].value == pytest.approx((0.94 - 0.7) / (0.95 - 0.7))
    slices = good.tables[0]
    assert slices.columns == ["edge-0 (seven, eight)", "edge-1 (nine, seven)", "taught", "known", "all"]
    assert {"base", "edge-0", "FedAvg of BA", KNOWN_ROW, "student, lambda size, sampled"} < set(slices.rows)
    assert all(path.stat().st_size for path in write(good, tmp_path))
    poor = result_of(request_, [0], invented(request_, [0], 0.75))
    assert [shown.holds for shown in poor.shows[:3]] == [False, False, False]


def test_a_cell_that_failed_breaks_its_promise_and_is_named(request_: Request) -> None:
    found = invented(request_, [0], 0.94)
    found[0, "few-step-adversarial"] = {"failed": "the loss is not finite"}
    result = result_of(request_, [0], found)
    broken = [shown for shown in result.shows if not shown.holds]
    assert len(broken) == 1 and "adversarial" in broken[0].what and math.isnan(broken[0].value)
    assert any("few-step-adversarial was left out: the loss is not finite" in note for note in result.notes)
