"""A real (tiny) pipeline: published, pulled and opened by plain diffusers, it draws the same bits; so does its LoRA."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import numpy as np

from fedkd.checkpoints.registry import Registry
from fedkd.checkpoints.transfer import pull
from tests.checkpoints.web import registry_at
from tests.distillation.small_job import adapter_at

LORA = "pytorch_lora_weights.safetensors"


def draw(folder: Path, lora: Path | None = None) -> Any:
    import torch
    from diffusers import DiffusionPipeline

    pipe = DiffusionPipeline.from_pretrained(str(folder))
    pipe.set_progress_bar_config(disable=True)
    if lora is not None:
        pipe.load_lora_weights(str(lora))
    generator = torch.Generator().manual_seed(7)
    return pipe("a seven", num_inference_steps=2, generator=generator, output_type="np").images[0]


def test_published_and_pulled_draw_the_same_bits(tiny_folder: Path, tiny_pipeline: Any, tmp_path: Path) -> None:
    from fedkd.models.adapter import diffusers_lora_bytes

    student = tmp_path / "student"
    shutil.copytree(tiny_folder, student)
    adapter = adapter_at(tmp_path / "edge.safetensors", tiny_pipeline)
    (student / LORA).write_bytes(diffusers_lora_bytes(adapter.read_bytes()))
    here, there = Registry(tmp_path / "here"), Registry(tmp_path / "there")
    here.publish(student, name="m")
    with registry_at(here.root) as (url, _):
        pull("m", url, there)
    wanted = draw(student)
    assert np.array_equal(draw(here.resolve("m")), wanted) and np.array_equal(draw(there.resolve("m")), wanted)
    assert not np.array_equal(draw(there.resolve("m"), there.resolve("m")), wanted)
