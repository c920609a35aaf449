"""Small diffusers folders with real safetensors files, made without torch."""

from __future__ import annotations

import json
import zlib
from pathlib import Path

import numpy as np
from safetensors.numpy import save_file


def write_weights(path: Path, seed: str, size_bytes: int = 256) -> None:
    """A safetensors file of random bytes, the same for the same seed."""
    path.parent.mkdir(parents=True, exist_ok=True)
    noise = np.random.default_rng(zlib.crc32(seed.encode())).integers(0, 256, size_bytes, dtype=np.uint8)
    path.unlink(missing_ok=True)
    save_file({"w": noise}, path)


def make_model(folder: Path, unet: str = "one", vae: str = "vae", size_bytes: int = 256) -> Path:
    """A folder with model_index.json, unet/ and vae/; the texts are the seeds of the weights."""
    for part, seed in {"unet": unet, "vae": vae}.items():
        write_weights(folder / part / "w.safetensors", seed, size_bytes)
    (folder / "model_index.json").write_text(json.dumps({"_class_name": "StableDiffusionPipeline"}))
    return folder
