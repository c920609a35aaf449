"""Pipelines loaded from several threads at once."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import torch

from fedkd.models.pipeline import denoiser_of, load_pipeline


def test_threads_that_load_at_once_get_whole_models(tiny_folder: Path) -> None:
    with ThreadPoolExecutor(2) as pool:
        made = list(pool.map(load_pipeline, [str(tiny_folder)] * 4))
    first = denoiser_of(made[0]).state_dict()
    for pipe in made[1:]:
        assert all(torch.equal(first[key], value) for key, value in denoiser_of(pipe).state_dict().items())
