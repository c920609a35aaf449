"""D_n to D'_n by a short private LoRA, from which new pictures are drawn; the adapter never leaves the user."""

from __future__ import annotations

from collections.abc import Callable

from diffusers import DiffusionPipeline
from PIL import Image

from fedkd.models.adapter import load_adapter, remove_adapters
from fedkd.models.pipeline import denoiser_of
from fedkd.models.sampling import sample
from fedkd.recipe import SynthesisConfig


class Personal:
    """The pipeline with the user's own adapter in place, inside a `with` block."""

    def __init__(self, pipe: DiffusionPipeline, adapter: bytes) -> None:
        self.pipe, self.adapter = pipe, adapter

    def __enter__(self) -> Callable[[list[str], SynthesisConfig, int], list[Image.Image]]:
        denoiser = denoiser_of(self.pipe)
        load_adapter(denoiser, self.adapter, "personal")
        denoiser.set_adapter("personal")
        return self.draw

    def __exit__(self, *error: object) -> None:
        remove_adapters(denoiser_of(self.pipe))

    def draw(self, prompts: list[str], config: SynthesisConfig, seed: int) -> list[Image.Image]:
        """One new picture a prompt."""
        return sample(
            self.pipe,
            prompts,
            seed=seed,
            num_inference_steps=config.num_inference_steps,
            guidance_scale=config.guidance_scale,
            batch_size=config.batch_size,
        )
