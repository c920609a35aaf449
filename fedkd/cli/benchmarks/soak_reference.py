"""What a picture should be: diffusers' own pipeline, with the version that served it, in this process."""

from __future__ import annotations

import threading
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image

from fedkd.models.pipeline import load_pipeline

TOLERANCE = 1  # of 255: what sharing a forward with others may change


@dataclass(frozen=True)
class Drawn:
    """One picture to draw; guidance is above 1 or exactly 1."""

    prompt: str
    seed: int
    steps: int
    scheduler: str
    guidance: float

    @property
    def body(self) -> dict[str, Any]:
        """The request's fields, those that both routes share."""
        return {
            "prompt": self.prompt,
            "seed": self.seed,
            "num_inference_steps": self.steps,
            "scheduler": self.scheduler,
            "guidance_scale": self.guidance,
        }


CATALOGUE = tuple(
    Drawn(prompt, seed, steps, scheduler, guidance)
    for seed, (prompt, steps, scheduler, guidance) in enumerate(
        [
            ("a red seven on a blue background", 4, "DDIMScheduler", 2.0),
            ("a white zero on a black background", 6, "EulerDiscreteScheduler", 2.0),
            ("a green four on a yellow background", 8, "DPMSolverMultistepScheduler", 2.0),
            ("a blue one on a white background", 10, "UniPCMultistepScheduler", 3.0),
            ("a purple nine on a green background", 12, "EulerAncestralDiscreteScheduler", 2.0),
            ("an orange two on a red background", 5, "DDIMScheduler", 1.0),
            ("a yellow three on a purple background", 7, "HeunDiscreteScheduler", 2.0),
            ("a black five on an orange background", 9, "DDIMScheduler", 2.0),
        ]
    )
)


class References:
    """Pictures of the versions in `folders`, drawn once each; any thread may ask, one draws.

    All are loaded at once: diffusers' and transformers' loaders change torch for all threads while they work.
    """

    def __init__(self, folders: Iterable[Path]) -> None:
        torch.set_num_threads(1)  # as the edge has
        self._pipes: dict[Path, Any] = {folder: load_pipeline(str(folder)) for folder in folders}
        self._pictures: dict[tuple[Path, Drawn], np.ndarray] = {}
        self._lock = threading.Lock()

    def denoiser(self, folder: Path) -> Any:
        """The denoiser of a folder, which any number of threads may use."""
        return self._pipes[folder].unet

    def picture(self, folder: Path, drawn: Drawn) -> np.ndarray:
        """The pixels (H, W, 3), int16."""
        with self._lock:
            if (folder, drawn) not in self._pictures:
                import diffusers

                pipe = self._pipes[folder]
                pipe.scheduler = getattr(diffusers, drawn.scheduler).from_config(pipe.scheduler.config)
                image = pipe(
                    drawn.prompt,
                    num_inference_steps=drawn.steps,
                    guidance_scale=drawn.guidance,
                    generator=torch.Generator("cpu").manual_seed(drawn.seed),
                ).images[0]
                self._pictures[folder, drawn] = pixels(image)
            return self._pictures[folder, drawn]

    def is_right(self, image: Image.Image, folders: list[Path], drawn: Drawn, *, exact: bool) -> bool:
        """Whether the picture is that of one of the versions: byte for byte if `exact`, else within 1/255."""
        found, bound = pixels(image), 0 if exact else TOLERANCE
        return any(
            found.shape == wanted.shape and int(np.abs(found - wanted).max()) <= bound
            for wanted in (self.picture(folder, drawn) for folder in folders)
        )


def pixels(image: Image.Image) -> np.ndarray:
    """The pixels (H, W, 3) as int16, so that they can be subtracted."""
    return np.asarray(image.convert("RGB")).astype(np.int16)
