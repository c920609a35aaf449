"""Adapters leave and arrive as safetensors, are checked before use, and merge to what they were."""

from typing import Any

import pytest
import torch
from safetensors.torch import load, save

from fedkd.models.adapter import (
    AdapterError,
    adapter_bytes,
    add_adapter,
    check_adapter,
    diffusers_lora_bytes,
    load_adapter,
    merge_adapter,
    remove_adapters,
)
from fedkd.models.conditioning import encode_prompts, predict
from fedkd.recipe import LoraConfig


@pytest.fixture
def adapter(tiny_pipeline: Any) -> bytes:
    parameters = add_adapter(tiny_pipeline.unet, "a", LoraConfig(rank=2, alpha=4), seed=1)
    generator = torch.Generator().manual_seed(0)
    for parameter in parameters:
        parameter.data = torch.randn(parameter.shape, generator=generator) * 0.2
    data = adapter_bytes(tiny_pipeline.unet, "a")
    remove_adapters(tiny_pipeline.unet)
    return data


def output(pipe: Any) -> torch.Tensor:
    latents = torch.randn(2, 4, 8, 8, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        return predict(pipe.unet, latents, torch.tensor([10, 900]), encode_prompts(pipe, ["a", "b"]))


def test_a_loaded_adapter_is_bitwise_the_one_that_was_saved(tiny_pipeline: Any, adapter: bytes) -> None:
    load_adapter(tiny_pipeline.unet, adapter, "b")
    assert adapter_bytes(tiny_pipeline.unet, "b") == adapter
    remove_adapters(tiny_pipeline.unet)


def test_removing_adapters_restores_the_model(tiny_pipeline: Any, adapter: bytes) -> None:
    before, keys = output(tiny_pipeline), list(tiny_pipeline.unet.state_dict())
    load_adapter(tiny_pipeline.unet, adapter, "b")
    tiny_pipeline.unet.set_adapter("b")
    assert not torch.equal(output(tiny_pipeline), before)
    remove_adapters(tiny_pipeline.unet)
    assert torch.equal(output(tiny_pipeline), before)
    assert list(tiny_pipeline.unet.state_dict()) == keys


def test_merging_gives_the_adapted_output(tiny_pipeline: Any, adapter: bytes) -> None:
    saved = {key: value.clone() for key, value in tiny_pipeline.unet.state_dict().items()}
    load_adapter(tiny_pipeline.unet, adapter, "b")
    tiny_pipeline.unet.set_adapter("b")
    adapted = output(tiny_pipeline)
    remove_adapters(tiny_pipeline.unet)
    merge_adapter(tiny_pipeline, adapter)
    assert torch.allclose(output(tiny_pipeline), adapted, atol=1e-5)
    tiny_pipeline.unet.load_state_dict(saved)


def test_plain_diffusers_loads_the_lora_file(tiny_pipeline: Any, adapter: bytes, tmp_path: Any) -> None:
    load_adapter(tiny_pipeline.unet, adapter, "b")
    tiny_pipeline.unet.set_adapter("b")
    ours = output(tiny_pipeline)
    remove_adapters(tiny_pipeline.unet)
    (tmp_path / "pytorch_lora_weights.safetensors").write_bytes(diffusers_lora_bytes(adapter))
    tiny_pipeline.load_lora_weights(str(tmp_path), weight_name="pytorch_lora_weights.safetensors")
    theirs = output(tiny_pipeline)
    tiny_pipeline.unload_lora_weights()
    assert torch.allclose(ours, theirs, atol=1e-6)


def edited(data: bytes, change: Any) -> bytes:
    tensors = load(data)
    key = sorted(tensors)[0]
    change(tensors, key)
    size = int.from_bytes(data[:8], "little")
    import json

    return save(tensors, metadata=json.loads(data[8 : 8 + size])["__metadata__"])


def test_bad_adapters_are_refused(tiny_pipeline: Any, adapter: bytes) -> None:
    def nan(tensors: dict, key: str) -> None:
        tensors[key] = tensors[key] * float("nan")

    def reshape(tensors: dict, key: str) -> None:
        tensors[key] = tensors[key][:, :-1].contiguous()

    def rename(tensors: dict, key: str) -> None:
        tensors["x.lora_A.weight"] = tensors.pop(key)

    for change, reason in [(nan, "not finite"), (reshape, "does not fit"), (rename, "does not fit")]:
        with pytest.raises(AdapterError, match=reason):
            check_adapter(edited(adapter, change), tiny_pipeline.unet)
    for garbage in (b"", b"garbage" * 10, adapter[:100]):
        with pytest.raises(AdapterError):
            check_adapter(garbage, tiny_pipeline.unet)
