"""D_n to D'_n by a short private LoRA, from which new pictures are drawn; the adapter never leaves the user."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace

from datasets import Dataset
from diffusers import DiffusionPipeline
from PIL import Image

from fedkd.models.adapter import load_adapter, remove_adapters
from fedkd.models.pipeline import denoiser_of
from fedkd.models.sampling import sample
from fedkd.recipe import FinetuneConfig, Recipe, SynthesisConfig
from fedkd.training.finetune import finetune


def personal_config(recipe: Recipe) -> FinetuneConfig:
    """How a user trains its own adapter: as an edge does, for `synthesis.personal_steps` steps."""
    return replace(recipe.finetune, steps=recipe.synthesis.personal_steps)


@contextmanager
def personalised(pipe: DiffusionPipeline, private: Dataset, recipe: Recipe, seed: int) -> Iterator[None]:
    """Inside the block `pipe` carries an adapter trained on `private` for `synthesis.personal_steps` steps."""
    adapter, _ = finetune(pipe, private, personal_config(recipe), seed=seed)
    denoiser = denoiser_of(pipe)
    load_adapter(denoiser, adapter, "personal")
    denoiser.set_adapter("personal")
    try:
        yield
    finally:
        remove_adapters(denoiser)


def draw_personal(pipe: DiffusionPipeline, prompts: list[str], config: SynthesisConfig, seed: int) -> list[Image.Image]:
    """One new picture a prompt from the personalised pipeline."""
    return sample(
        pipe,
        prompts,
        seed=seed,
        num_inference_steps=config.num_inference_steps,
        guidance_scale=config.guidance_scale,
        batch_size=config.batch_size,
    )
