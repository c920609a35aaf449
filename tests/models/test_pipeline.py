"""Models load from any diffusers folder, are saved whole, and what is missing is named."""

import shutil
from pathlib import Path
from typing import Any

import pytest
import torch

from fedkd.models.pipeline import load_pipeline, named_scheduler, save_pipeline
from fedkd.models.source import ModelError, resolve_model


def test_the_shipped_model_is_a_small_plain_diffusers_folder() -> None:
    folder = Path(resolve_model("tiny-sd"))
    files = [path for path in folder.rglob("*") if path.is_file()]
    assert sum(path.stat().st_size for path in files) <= 8 * 2**20
    assert {path.suffix for path in files} <= {".json", ".safetensors", ".txt", ".md"}
    assert load_pipeline("tiny-sd").unet.config.cross_attention_dim == 64


def test_a_saved_pipeline_loads_again_with_its_weights_and_leaves_the_source_alone(
    tiny_pipeline: Any, tmp_path: Path
) -> None:
    before = {key: value.clone() for key, value in tiny_pipeline.unet.state_dict().items()}
    save_pipeline(tiny_pipeline, tmp_path / "m", dtype="float16")
    loaded = load_pipeline(str(tmp_path / "m")).unet.state_dict()
    for key, value in tiny_pipeline.unet.state_dict().items():
        assert torch.equal(value, before[key])
        assert torch.equal(loaded[key], value.half().float())
    assert [path.name for path in tmp_path.iterdir()] == ["m"]


@pytest.mark.parametrize("name", ["", "no-such-model", "./nowhere"])
def test_a_missing_model_is_named(name: str) -> None:
    with pytest.raises(ModelError, match=r"model\.path"):
        load_pipeline(name)


def test_a_corrupt_model_is_one_clear_error(tiny_folder: Path, tmp_path: Path) -> None:
    broken = tmp_path / "broken"
    shutil.copytree(tiny_folder, broken)
    weights = next((broken / "unet").glob("*.safetensors"))
    weights.write_bytes(weights.read_bytes()[:200])
    with pytest.raises(ModelError, match="cannot load the model"):
        load_pipeline(str(broken))


def test_an_unknown_scheduler_is_named() -> None:
    with pytest.raises(ModelError, match="NoSuchScheduler"):
        named_scheduler("NoSuchScheduler")
