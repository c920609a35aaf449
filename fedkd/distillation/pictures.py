"""Pictures for D_C that models draw themselves: the base's replay, and each teacher's of what it knows."""

from __future__ import annotations

from datasets import Dataset
from diffusers import DiffusionPipeline

from fedkd.data.captions import prompts_for
from fedkd.data.sources import to_dataset
from fedkd.models.sampling import sample
from fedkd.recipe import Recipe
from fedkd.training.loop import Progress


def draw_pictures(
    pipe: DiffusionPipeline,
    recipe: Recipe,
    concepts: list[str],
    count: int,
    *,
    seed: int,
    progress: Progress | None = None,
) -> Dataset:
    """`count` captioned pictures of `concepts` in equal shares, drawn by `pipe` as it is; empty without concepts."""
    if not concepts or not count:
        return to_dataset([])
    each = -(-count // len(concepts))
    prompts = [text for value in concepts for text in prompts_for(recipe.prompts, value, each, seed)][:count]
    return draw_prompts(pipe, recipe, prompts, seed=seed, progress=progress)


def draw_prompts(
    pipe: DiffusionPipeline, recipe: Recipe, prompts: list[str], *, seed: int, progress: Progress | None = None
) -> Dataset:
    """One captioned picture a prompt, drawn by `pipe` as it is."""
    images = sample(
        pipe,
        prompts,
        seed=seed,
        num_inference_steps=recipe.model.num_inference_steps,
        guidance_scale=recipe.model.guidance_scale,
        batch_size=recipe.evaluation.batch_size,
        progress=progress,
    )
    return to_dataset([{"image": i, "caption": p} for i, p in zip(images, prompts, strict=True)])


def draw_replay(pipe: DiffusionPipeline, recipe: Recipe, *, seed: int, progress: Progress | None = None) -> Dataset:
    """`distillation.replay` pictures that the base draws of what it knows, so that the student keeps it."""
    return draw_pictures(pipe, recipe, recipe.prompts.known, recipe.distillation.replay, seed=seed, progress=progress)
