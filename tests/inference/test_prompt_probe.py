"""What a denoiser makes of a prompt is what its guidance would change, whatever noise the picture itself has."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch

from fedkd.inference.denoiser import denoise, encode, start
from fedkd.inference.prompt_probe import SIDE, answer, probe


def asked(pipe: Any, prompt: str, seed: int = 3, guidance_scale: float = 2.0) -> Any:
    facts: dict[str, Any] = {"num_inference_steps": 4, "scheduler": "DDIMScheduler"}
    return start(pipe, encode(pipe, prompt, guidance_scale), seed=seed, guidance_scale=guidance_scale, **facts)


def answered(pipe: Any, job: Any) -> Any:
    return answer(*(denoise(pipe.unet, probe(job, blank=blank), 1) for blank in (False, True)))


def test_it_points_where_guidance_does_and_not_at_the_noise(tiny_pipeline: Any) -> None:
    job = asked(tiny_pipeline, "a red seven")
    found = answered(tiny_pipeline, job)
    assert job.step == 0 and np.array_equal(found, answered(tiny_pipeline, asked(tiny_pipeline, "a red seven", 4)))
    latents, text = probe(job).latents, job.conditions["encoder_hidden_states"]
    with torch.no_grad():
        rows = tiny_pipeline.unet(latents.repeat(2, 1, 1, 1), job.scheduler.timesteps[0], text).sample
    guided = (rows[1] - rows[0]).double().flatten().numpy()
    cosine = found @ guided / np.linalg.norm(found) / np.linalg.norm(guided)
    assert abs(cosine) == pytest.approx(1, abs=1e-3) and latents.shape[-1] <= SIDE


def test_the_empty_prompt_has_no_direction_and_without_guidance_there_is_no_row_of_it(tiny_pipeline: Any) -> None:
    assert answered(tiny_pipeline, asked(tiny_pipeline, "")) is None
    alone = asked(tiny_pipeline, "a red seven", guidance_scale=1.0)
    with pytest.raises(ValueError, match="without guidance"):
        probe(alone, blank=True)
    assert answer(denoise(tiny_pipeline.unet, probe(alone), 1)) is not None
