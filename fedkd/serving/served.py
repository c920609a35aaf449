"""One version of one model in an edge's memory, and what holds where a request leaves something out."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import diffusers
import torch

from fedkd.inference.schedulers import SCHEDULERS, config_of
from fedkd.models.pipeline import denoiser_of
from fedkd.serving.components import ComponentFile
from fedkd.serving.controls import Control

# What this edge knows beyond the plain split session; a device asks an edge for nothing that it does not name.
FEATURES = ("wire", "exact", "events", "previews", "resume", "conditions", "deadline", "models", "controls")


@dataclass(frozen=True)
class Defaults:
    """What holds where neither a request nor the checkpoint's own manifest says otherwise."""

    scheduler: str = "DDIMScheduler"
    num_inference_steps: int = 12
    guidance_scale: float = 2.0


@dataclass(eq=False)
class Served:
    """One version of one model in memory; `key` is its name in the step engine, `index` its model_index.json.

    `condition_shapes` are those of one row of the prompt's conditions; `controls` are its ControlNets, by the kind of
    condition that steers them. It is `retired` when a newer version has its
    name, and goes when the last of its `users` (requests and sessions) has ended.
    """

    name: str
    version: str
    digest: str
    folder: Path
    pipe: Any
    index: dict[str, Any]
    files: list[ComponentFile]
    defaults: Defaults
    dtype: str
    device: str
    tag: str
    release_files: Callable[[], None]
    condition_shapes: dict[str, tuple[int, ...]]
    created: int = field(default_factory=lambda: int(time.time()))
    key: str = ""
    controls: dict[str, Control] = field(default_factory=dict)
    users: int = 0
    retired: bool = False

    def key_of(self, kind: str = "") -> str:
        """The step engine's name of its bare denoiser, or of that with the ControlNet for `kind`."""
        return self.controls[kind].key if kind else self.key

    @property
    def resolution(self) -> tuple[int, int]:
        """Height and width of its pictures in pixels."""
        _, height, width = self.latent_shape
        return height * self.pipe.vae_scale_factor, width * self.pipe.vae_scale_factor

    @property
    def latent_shape(self) -> tuple[int, int, int]:
        """(C, h, w) of its latents."""
        network: Any = denoiser_of(self.pipe).config
        side = network.sample_size
        height, width = (side, side) if isinstance(side, int) else side
        return int(network.in_channels), int(height), int(width)

    def describe(self) -> dict[str, Any]:
        """What `GET /v1/model` answers."""
        index = self.index
        return {
            "name": self.name,
            "version": self.version,
            "digest": self.digest,
            "pipeline": index.get("_class_name"),
            "classes": {
                key: made[1]
                for key, made in index.items()
                if not key.startswith("_") and isinstance(made, list) and made[1]
            },
            "files": [asdict(file) for file in self.files],
            "scheduler": {"class": type(self.pipe.scheduler).__name__, "config": config_of(self.pipe.scheduler)},
            "schedulers": list(SCHEDULERS),
            "resolution": list(self.resolution),
            "num_inference_steps": self.defaults.num_inference_steps,
            "guidance_scale": self.defaults.guidance_scale,
            "dtype": self.dtype,
            "features": list(FEATURES),
            "controls": {kind: control.describe() for kind, control in self.controls.items()},
            "build": {
                "torch": torch.__version__,
                "diffusers": diffusers.__version__,
                "threads": torch.get_num_threads(),
                "device": self.device,
            },
        }
