"""Quality by number of steps: a few-step student beside its teachers, in shares and in pictures."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from diffusers import DiffusionPipeline
from PIL import Image

from fedkd.evaluation.accuracy import evaluate
from fedkd.evaluation.contact_sheet import contact_sheet
from fedkd.models.sampling import Progress, sample
from fedkd.recipe import Recipe

STUDENT, TEACHER, UNGUIDED = "student", "teacher", "teacher, no guidance"
REFERENCE_STEPS = 32  # the teacher at its best, to which few-step students are held
Opened = Callable[[int], AbstractContextManager[DiffusionPipeline]]
Row = dict[str, Any]


@dataclass(frozen=True)
class Part:
    """One network of a contender: `opened(steps)` gives the pipeline that draws; `concepts` are what it draws."""

    opened: Opened
    concepts: list[str]


@dataclass(frozen=True)
class Contender:
    """A student (one part) or a set of teachers (a part each), with the guidance it is drawn with."""

    name: str
    parts: list[Part]
    steps: list[int]
    guidance_scale: float
    most_steps: int | None = None  # its sampler takes no more
    made_for: tuple[int, ...] = ()  # step counts that it was trained for

    def counts(self) -> list[int]:
        """The step counts that it can be drawn at, in order."""
        return sorted({steps for steps in self.steps if not self.most_steps or steps <= self.most_steps})


def teacher_steps(recipe: Recipe) -> list[int]:
    """evaluation.steps_compared and the reference."""
    return sorted({*recipe.evaluation.steps_compared, REFERENCE_STEPS})


def score(contender: Contender, recipe: Recipe, *, seed: int, progress: Progress | None = None) -> list[Row]:
    """A row a step count: {"model", "steps", "accuracy", "known", "taught", "concepts", "seconds", "made_for"}.

    Each part draws its own concepts; a concept of several parts counts with their mean. Shares are 0..1.
    """
    rows, counts = [], contender.counts()
    for place, steps in enumerate(counts):
        began, shares = time.perf_counter(), dict[str, list[float]]()
        for part in contender.parts:
            with part.opened(steps) as pipe:
                found: Any = evaluate(
                    pipe,
                    recipe,
                    seed=seed,
                    concepts=part.concepts,
                    num_inference_steps=steps,
                    guidance_scale=contender.guidance_scale,
                )
            for concept, share in found["concepts"].items():
                shares.setdefault(concept, []).append(share)
        concepts = {concept: sum(values) / len(values) for concept, values in shares.items()}
        known = [share for concept, share in concepts.items() if concept in recipe.prompts.known]
        taught = [share for concept, share in concepts.items() if concept in recipe.prompts.taught]
        rows.append(
            {
                "model": contender.name,
                "steps": steps,
                "accuracy": _mean(list(concepts.values())),
                "known": _mean(known),
                "taught": _mean(taught),
                "concepts": concepts,
                "seconds": round(time.perf_counter() - began, 3),
                "made_for": steps in contender.made_for,
            }
        )
        if progress:
            progress(sum(counts[: place + 1]), sum(counts))
    return rows


def _mean(values: list[float]) -> float | None:
    return sum(values) / len(values) if values else None


def draw(
    contender: Contender, asked: Sequence[tuple[str, str]], steps: int, *, seed: int, batch_size: int = 64
) -> list[Image.Image]:
    """One picture for each (concept, prompt), by the first part that draws the concept (else the first part).

    Picture i has a seed of its own, so that it starts from the same noise whoever draws it.
    """
    owner = [next((i for i, p in enumerate(contender.parts) if concept in p.concepts), 0) for concept, _ in asked]
    chosen: dict[int, Image.Image] = {}
    for place in sorted(set(owner)):
        mine = [i for i, part in enumerate(owner) if part == place]
        with contender.parts[place].opened(steps) as pipe:
            images = sample(
                pipe,
                [asked[i][1] for i in mine],
                seed=seed,
                seeds=[seed * 1009 + i for i in mine],
                num_inference_steps=steps,
                guidance_scale=contender.guidance_scale,
                batch_size=batch_size,
            )
        chosen |= dict(zip(mine, images, strict=True))
    return [chosen[i] for i in range(len(asked))]


def draw_sheets(
    student: Contender,
    teacher: Contender,
    asked: Sequence[tuple[str, str]],
    folder: Path,
    *,
    seed: int,
    batch_size: int = 64,
    progress: Progress | None = None,
) -> list[dict[str, Any]]:
    """A sheet a step count in `folder`, student left and teacher right, same prompts and noise.

    Returns [{"steps", "picture": file name}].
    """
    sheets, counts = [], sorted({*student.counts(), *teacher.counts()})
    for place, steps in enumerate(counts):
        sides = [
            draw(who, asked, steps, seed=seed, batch_size=batch_size) if steps in who.counts() else None
            for who in (student, teacher)
        ]
        name = f"steps-{steps}.png"
        save_picture(beside(sides[0], sides[1]), folder / name)
        sheets.append({"steps": steps, "picture": name, "prompts": [prompt for _, prompt in asked]})
        if progress:
            progress(sum(counts[: place + 1]), sum(counts))
    return sheets


def beside(left: list[Image.Image] | None, right: list[Image.Image] | None) -> Image.Image:
    """Two sheets of four columns side by side; a side without pictures stays empty."""
    pictures = left or right or []
    sheets = [contact_sheet(side, columns=4, scale=scale_of(side)) if side else None for side in (left, right)]
    size = contact_sheet(pictures, columns=4, scale=scale_of(pictures)).size
    gap = max(8, size[0] // 16)
    page = Image.new("RGB", (2 * size[0] + gap, size[1]), "white")
    for place, sheet in enumerate(sheets):
        if sheet:
            page.paste(sheet, (place * (size[0] + gap), 0))
    return page


def scale_of(pictures: Sequence[Image.Image]) -> int:
    """How often a picture is enlarged so that it can be seen: to about 64 pixels."""
    return max(1, 64 // max(1, pictures[0].width))


def save_picture(picture: Image.Image, path: Path) -> None:
    """Write a PNG, whole or not at all."""
    path.parent.mkdir(parents=True, exist_ok=True)
    part = path.with_name(path.name + ".part")
    picture.save(part, "PNG")
    part.replace(path)
