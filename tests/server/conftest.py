"""A federation of two edges and four users small enough to run in seconds."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import pytest

from fedkd.recipe import Recipe, load_recipe
from server.rounds import Federation
from tests.server.loopback_grid import Fault, LoopbackGrid

SMALL = (
    "model.num_inference_steps=2",
    "data.source=folder",
    "synthesis.seeds_per_image=1",
    "synthesis.samples=4",
    "synthesis.personal_steps=2",
    "synthesis.num_inference_steps=2",
    "finetune.steps=3",
    "finetune.batch_size=4",
    "finetune.lora.target_modules=[to_q,ff.net.2]",  # of attention and of feed-forward; PEFT is slow to wrap
    "distillation.steps=3",
    "distillation.batch_size=4",
    "distillation.replay=6",
    "evaluation.classifier=''",
    "evaluation.samples_per_concept=1",
    "evaluation.num_inference_steps=1",
    "federation.phase_timeout_s=60",
)


CAPTIONS = ("a red seven on a blue background", "a green eight on a black background")
CAPTIONS += ("a white nine on a red background", "a blue seven on a white background")


def private_folder(folder: Path) -> Path:
    """Twelve captioned pictures of noise, four captions: one a user. Noise is never drawn twice by chance."""
    import numpy as np
    from PIL import Image

    folder.mkdir(parents=True, exist_ok=True)
    noise = np.random.default_rng(0).integers(0, 256, (12, 32, 32, 3), dtype=np.uint8)
    for index, pixels in enumerate(noise):
        Image.fromarray(pixels).save(folder / f"{index}.png")
        (folder / f"{index}.txt").write_text(CAPTIONS[index % 4])
    return folder


def small_recipe(model: Path, out: Path, *overrides: str) -> Recipe:
    """The quickstart recipe in small on the model in folder `model`; the run is OUT/small."""
    data = private_folder(out / "private")
    places = (
        f"data.path={data}",
        f"model.path={model}",
        "model.name=tiny",
        f"run.out={out}",
        "run.name=small",
    )
    return load_recipe("quickstart", [*SMALL, *places, *overrides])


def federation(recipe: Recipe, out: Path, faults: dict[tuple[int, str], Fault] | None = None) -> Federation:
    """A federation over a LoopbackGrid; its run is OUT/small."""
    nodes = recipe.federation.edges + recipe.federation.users
    run = out / "small"
    run.mkdir(parents=True, exist_ok=True)
    return Federation(LoopbackGrid(nodes, faults), recipe, run, run / "registry", wait_s=1.0)


@dataclass
class Done:
    """An undisturbed two-round run."""

    recipe: Recipe
    federation: Federation
    run: Path


@pytest.fixture(scope="session")
def undisturbed(tiny_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Done:
    """Two rounds without faults; leave its folder as it is."""
    out = tmp_path_factory.mktemp("undisturbed")
    recipe = small_recipe(tiny_folder, out)
    made = federation(recipe, out)
    made.go()
    return Done(recipe, made, out / "small")


@pytest.fixture()
def run_with(tiny_folder: Path, tmp_path: Path) -> Callable[..., Federation]:
    """A function from faults and overrides to a one-round federation that has not begun."""

    def make(faults: dict[tuple[int, str], Fault], *overrides: str) -> Federation:
        recipe = small_recipe(tiny_folder, tmp_path, "federation.rounds=1", *overrides)
        return federation(recipe, tmp_path, faults)

    return make
