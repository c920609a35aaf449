"""A pipeline folder that lacks something its model_index.json names gets no name, and the error says what."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from fedkd.checkpoints.manifest import CheckpointError
from fedkd.checkpoints.registry import Registry
from tests.checkpoints.folders import make_model, write_weights

INDEX = {
    "_class_name": "StableDiffusionPipeline",
    "unet": ["diffusers", "UNet2DConditionModel"],
    "tokenizer": ["transformers", "CLIPTokenizer"],
    "safety_checker": [None, None],
    "requires_safety_checker": False,
}


@pytest.fixture()
def model(tmp_path: Path) -> Path:
    """A whole pipeline: a UNet with a config, a tokenizer with one too."""
    folder = make_model(tmp_path / "model")
    (folder / "model_index.json").write_text(json.dumps(INDEX))
    (folder / "tokenizer").mkdir()
    for part in ("unet", "tokenizer"):
        (folder / part / "config.json").write_text("{}")
    return folder


def refusal(model: Path, tmp_path: Path) -> str:
    registry = Registry(tmp_path / "registry")
    with pytest.raises(CheckpointError) as error:
        registry.publish(model, name="m")
    assert registry.names() == []
    return str(error.value)


def test_a_whole_pipeline_is_taken(model: Path, tmp_path: Path) -> None:
    assert Registry(tmp_path / "registry").publish(model, name="m").version == "v0"


def test_a_missing_component_is_named(model: Path, tmp_path: Path) -> None:
    (model / "tokenizer/config.json").unlink()
    assert "names 'tokenizer', and there is no such folder" in refusal(model, tmp_path)


def test_a_component_without_weights_is_named(model: Path, tmp_path: Path) -> None:
    (model / "unet/w.safetensors").unlink()
    assert "'unet' has no weights" in refusal(model, tmp_path)


def test_a_missing_shard_is_named(model: Path, tmp_path: Path) -> None:
    shards = {"a": "w-1.safetensors", "b": "w-2.safetensors"}
    (model / "unet/w.safetensors.index.json").write_text(json.dumps({"weight_map": shards}))
    write_weights(model / "unet/w-1.safetensors", "1")
    assert "'unet/w-2.safetensors' is missing" in refusal(model, tmp_path)
    write_weights(model / "unet/w-2.safetensors", "2")
    Registry(tmp_path / "registry").publish(model, name="m")
