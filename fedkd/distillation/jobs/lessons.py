"""The pictures D_C of a distillation job: drawn by its teachers, or captioned pictures from elsewhere."""

from __future__ import annotations

import hashlib
from pathlib import Path

from accelerate import PartialState
from datasets import Dataset
from diffusers import DiffusionPipeline

from fedkd.data.captions import concept_of, prompts_for
from fedkd.data.packing import pack_dataset, unpack_dataset
from fedkd.data.sources import DataError, load_images, to_dataset
from fedkd.distillation.distil import UNKNOWN
from fedkd.distillation.jobs.clock import write_bytes
from fedkd.distillation.jobs.faculty import Faculty
from fedkd.distillation.jobs.view import View
from fedkd.distillation.pictures import draw_pictures, draw_prompts
from fedkd.distillation.teachers import BASE
from fedkd.recipe import Recipe
from fedkd.training.loop import is_main_process

NO_LIMIT = 2**62
SHEET = 16  # pictures of a sample sheet


def check_source(recipe: Recipe) -> None:
    """Raise DataError where the recipe's pictures and lambda cannot go together."""
    data, config = recipe.data, recipe.distillation
    if data.source == "prompts":
        if data.path:
            prompt_lines(data.path)
        elif not recipe.prompts.template or not recipe.prompts.known + recipe.prompts.taught:
            raise DataError(
                "data.source=prompts has nothing to draw: give prompts.template and prompts.known or prompts.taught, "
                "or data.path=FILE with a prompt a line"
            )
    elif config.teacher_weights == "provenance" and len(recipe.teachers) > 1:
        raise DataError(
            f"distillation.teacher_weights=provenance needs to know who drew each picture, and with "
            f"data.source={data.source} nobody does; use data.source=prompts, or teacher_weights=confidence"
        )


def prompt_lines(path: str) -> list[str]:
    """The prompts of a text file, one a line, empty lines left out; DataError when there are none."""
    try:
        text = Path(path).expanduser().read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise DataError(f"data.path={path} cannot be read ({error}); give a text file with a prompt a line") from error
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    if not lines:
        raise DataError(f"data.path={path} has no prompts; give a text file with a prompt a line")
    return lines


def learned_sets(
    pipe: DiffusionPipeline, faculty: Faculty, recipe: Recipe, run: Path, view: View
) -> dict[str, Dataset]:
    """Captioned pictures by the teacher who drew them; UNKNOWN where nobody here did.

    Drawn ones are kept as RUN/pictures/NAME.parquet and drawn once; the main process alone draws.
    """
    if recipe.data.source != "prompts":
        pictures = load_images(recipe)
        if len(faculty.names) == 1:
            return {faculty.names[0]: pictures}
        own = {BASE: to_dataset([])} if BASE in faculty.names else {}  # BASE teaches without pictures of its own
        return {UNKNOWN: pictures} | own
    files = {name: run / "pictures" / f"{name}.parquet" for name in faculty.names}
    if is_main_process():
        for place, (name, path) in enumerate(files.items()):
            if path.is_file():
                continue
            view.begin(f"{name} draws its pictures")
            pictures = drawn_by(pipe, faculty, name, place, recipe, view)
            write_bytes(path, pack_dataset(pictures))
    if PartialState._shared_state:
        PartialState().wait_for_everyone()
    return {name: unpack_dataset(path.read_bytes(), max_bytes=NO_LIMIT) for name, path in files.items()}


def drawn_by(pipe: DiffusionPipeline, faculty: Faculty, name: str, place: int, recipe: Recipe, view: View) -> Dataset:
    """`distillation.pictures` pictures of one teacher: of its concepts, or of its share of the prompt file."""
    count, seed = recipe.distillation.pictures, seed_of(recipe.run.seed, name)
    with faculty.drawing(pipe, name):
        if not recipe.data.path:
            return draw_pictures(pipe, recipe, faculty.concepts[name], count, seed=seed, progress=view.progress)
        lines = prompt_lines(recipe.data.path)
        prompts = [lines[(place * count + i) % len(lines)] for i in range(count)]
        return draw_prompts(pipe, recipe, prompts, seed=seed, progress=view.progress)


def seed_of(seed: int, name: str) -> int:
    """A teacher's own seed (31 bits), so that two do not start from the same noise."""
    return int.from_bytes(hashlib.sha256(f"{seed}/{name}".encode()).digest()[:4], "big") >> 1


def sheet_prompts(recipe: Recipe, faculty: Faculty, sets: dict[str, Dataset]) -> list[tuple[str, str]]:
    """(concept, prompt) of at most SHEET pictures: of the teachers' concepts in turn, or captions of D_C."""
    concepts = list(dict.fromkeys(concept for name in faculty.names for concept in faculty.concepts[name]))
    if concepts and recipe.prompts.template and not (recipe.data.source == "prompts" and recipe.data.path):
        each = -(-SHEET // len(concepts))
        asked = {concept: prompts_for(recipe.prompts, concept, each, recipe.run.seed) for concept in concepts}
        return [(concept, asked[concept][turn]) for turn in range(each) for concept in concepts][:SHEET]
    captions = list(dict.fromkeys(caption for pictures in sets.values() for caption in pictures["caption"]))
    step = max(1, len(captions) // SHEET)
    return [(concept_of(recipe.prompts, caption) or "", caption) for caption in captions[::step][:SHEET]]
