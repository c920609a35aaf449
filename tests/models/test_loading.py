"""Pipelines loaded from several threads at once, and opened by plain diffusers."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import torch
from diffusers import DiffusionPipeline

from fedkd.models.pipeline import denoiser_of, load_pipeline, save_pipeline


def test_threads_that_load_at_once_get_whole_models(tiny_folder: Path) -> None:
    with ThreadPoolExecutor(2) as pool:
        made = list(pool.map(load_pipeline, [str(tiny_folder)] * 4))
    first = denoiser_of(made[0]).state_dict()
    for pipe in made[1:]:
        assert all(torch.equal(first[key], value) for key, value in denoiser_of(pipe).state_dict().items())


def test_a_pipeline_saved_in_half_precision_draws_when_opened_without_a_dtype(
    tiny_pipeline: Any, tmp_path: Path
) -> None:
    save_pipeline(tiny_pipeline, tmp_path / "saved", dtype="float16")
    plain: Any = DiffusionPipeline.from_pretrained(str(tmp_path / "saved"))
    plain.set_progress_bar_config(disable=True)
    assert plain("a red seven", num_inference_steps=1, output_type="np").images.shape[0] == 1
    half: Any = DiffusionPipeline.from_pretrained(str(tmp_path / "saved"), dtype=torch.float16)
    assert {half.unet.dtype, half.vae.dtype, half.text_encoder.dtype} == {torch.float16}
