"""The same code loads, conditions, samples, fine-tunes and saves SDXL and SD3, not SD 1.x alone."""

from pathlib import Path
from typing import Any

import pytest
import torch

from fedkd.models.adapter import merge_adapter
from fedkd.models.conditioning import encode_prompts, latent_shape, predict
from fedkd.models.pipeline import denoiser_of, load_pipeline, save_pipeline
from fedkd.models.sampling import sample
from fedkd.recipe import FinetuneConfig, LoraConfig
from fedkd.training.finetune import finetune
from tests.distillation.classroom import pictures
from tests.models.families import sd3, sdxl


@pytest.mark.parametrize("build", [sdxl, sd3])
def test_a_family_goes_through_the_whole_of_an_edges_work(build: Any, tmp_path: Path) -> None:
    torch.manual_seed(0)
    save_pipeline(build(tmp_path / "tokenizer"), tmp_path / "model", dtype="float32")
    pipe = load_pipeline(str(tmp_path / "model"))
    conditions = encode_prompts(pipe, ["a cat", "a dog"])
    latents = torch.randn(2, *latent_shape(pipe, 32))
    assert predict(denoiser_of(pipe), latents, torch.tensor([10.0, 900.0]), conditions).shape == latents.shape
    config = FinetuneConfig(steps=2, batch_size=2, lora=LoraConfig(rank=2, target_modules=["to_q", "to_v"]))
    before = {key: value.clone() for key, value in denoiser_of(pipe).state_dict().items()}
    adapter, history = finetune(pipe, pictures(0), config, seed=0)
    assert len(history["loss"]) == 2
    merge_adapter(pipe, adapter)
    after = denoiser_of(pipe).state_dict()
    assert list(after) == list(before) and any(not torch.equal(after[key], before[key]) for key in before)
    images = sample(pipe, ["a cat"], seed=0, num_inference_steps=2, guidance_scale=2.0, resolution=32)
    assert images[0].size == (32, 32)
