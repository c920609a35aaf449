"""SDXL and SD3 (flow matching) split between two processes: the unsplit pipeline's picture, bit for bit."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import diffusers
import pytest
import torch

from fedkd.serving.device import EdgeClient
from fedkd.serving.loopback import serve_in_process
from tests.models.families import sd3, sdxl

T = 4


@pytest.mark.parametrize(
    ("build", "scheduler"), [(sdxl, "EulerDiscreteScheduler"), (sd3, "FlowMatchEulerDiscreteScheduler")]
)
def test_larger_families_split_over_http(tmp_path: Path, build: Any, scheduler: str) -> None:
    torch.set_num_threads(1)  # as the edge has
    torch.manual_seed(0)
    folder = tmp_path / "model"
    made = build(tmp_path / "tokenizer")
    made.save_pretrained(folder)
    absent = dict.fromkeys(name for name, part in made.components.items() if part is None)
    pipe: Any = diffusers.DiffusionPipeline.from_pretrained(str(folder), local_files_only=True, **absent)
    pipe.set_progress_bar_config(disable=True)
    pipe.scheduler = getattr(diffusers, scheduler).from_config(pipe.scheduler.config)
    side = int(pipe.vae_scale_factor * (getattr(pipe, "unet", None) or pipe.transformer).config.sample_size)
    wanted = pipe(
        "a red seven",
        num_inference_steps=T,
        guidance_scale=2.0,
        height=side,
        width=side,
        generator=torch.Generator("cpu").manual_seed(5),
        output_type="pil",
    ).images[0]
    served = serve_in_process(str(folder), name="large", scheduler=scheduler, num_inference_steps=T, threads=1)
    with served as url, EdgeClient(url, cache_dir=tmp_path / "cache") as device:
        for order in ("device_first", "edge_first"):
            for steps in (0, 1, T // 2, T - 1, T):
                drawn = device.generate("a red seven", device_steps=steps, order=order, seed=5, guidance_scale=2.0)
                assert drawn.image.tobytes() == wanted.tobytes(), f"{order}, {steps} on the device"
                assert drawn.exact
