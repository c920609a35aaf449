"""Prompt accuracy: the share of drawn pictures in which the reference classifier reads what was asked."""

from __future__ import annotations

from functools import lru_cache

from diffusers import DiffusionPipeline

from fedkd.data.captions import prompts_for, slots_of
from fedkd.evaluation.classifier import ReferenceClassifier, load_classifier
from fedkd.models.sampling import Progress, sample
from fedkd.recipe import Recipe

Accuracy = dict[str, object]


@lru_cache(maxsize=2)
def judge(name: str) -> ReferenceClassifier:
    """The classifier called `name`, loaded once a process."""
    return load_classifier(name)


def evaluate(
    pipe: DiffusionPipeline,
    recipe: Recipe,
    *,
    seed: int,
    progress: Progress | None = None,
    concepts: list[str] | None = None,
    num_inference_steps: int | None = None,
    guidance_scale: float | None = None,
) -> Accuracy:
    """Draw `samples_per_concept` pictures of every concept (or of `concepts` alone) and score them.

    Steps and guidance are evaluation.num_inference_steps and model.guidance_scale unless given.
    Returns {"accuracy", "known", "taught": share 0..1, "concepts": {value: share}}; a picture counts
    when every slot of its prompt is read right. All None without a classifier or a caption grammar.
    """
    config, prompts = recipe.evaluation, recipe.prompts
    concepts = prompts.known + prompts.taught if concepts is None else concepts
    if not config.classifier or not concepts:
        return {"accuracy": None, "known": None, "taught": None, "concepts": {}}
    asked = [text for value in concepts for text in prompts_for(prompts, value, config.samples_per_concept, seed)]
    images = sample(
        pipe,
        asked,
        seed=seed,
        num_inference_steps=num_inference_steps or config.num_inference_steps,
        guidance_scale=recipe.model.guidance_scale if guidance_scale is None else guidance_scale,
        batch_size=config.batch_size,
        progress=progress,
    )
    read = judge(config.classifier).read(images, recipe.model.resolution)
    right = [slots_of(prompts, text) == found for text, found in zip(asked, read, strict=True)]
    each = config.samples_per_concept
    shares = {value: sum(right[i * each : (i + 1) * each]) / each for i, value in enumerate(concepts)}
    return {
        "accuracy": sum(right) / len(right),
        "known": _mean(shares, prompts.known),
        "taught": _mean(shares, prompts.taught),
        "concepts": shares,
    }


def _mean(shares: dict[str, float], values: list[str]) -> float | None:
    found = [shares[value] for value in values if value in shares]
    return sum(found) / len(found) if found else None
