"""FedAvg baselines are what they claim: the mean of the factors, and the mean of the products."""

import json

import torch
from safetensors.torch import load, save

from fedkd.distillation.averaging import average_factors, average_products


def adapter(seed: int) -> bytes:
    generator = torch.Generator().manual_seed(seed)
    tensors = {
        "l.lora_A.weight": torch.randn(2, 5, generator=generator),
        "l.lora_B.weight": torch.randn(3, 2, generator=generator),
    }
    return save(tensors, metadata={"lora": json.dumps({"r": 2, "lora_alpha": 4, "target_modules": ["l"]})})


def product(data: bytes) -> torch.Tensor:
    """The weight change that an adapter stands for: (alpha / r) B A."""
    size = int.from_bytes(data[:8], "little")
    lora = json.loads(json.loads(data[8 : 8 + size])["__metadata__"]["lora"])
    tensors = load(data)
    return lora["lora_alpha"] / lora["r"] * tensors["l.lora_B.weight"] @ tensors["l.lora_A.weight"]


def test_products_are_averaged_exactly() -> None:
    expected = 0.75 * product(adapter(0)) + 0.25 * product(adapter(1))
    assert torch.allclose(product(average_products([adapter(0), adapter(1)], [3.0, 1.0])), expected, atol=1e-5)


def test_averaging_factors_is_another_thing_than_averaging_products() -> None:
    both = [adapter(0), adapter(1)]
    mean = load(average_factors(both, [3.0, 1.0]))
    a, b = load(both[0]), load(both[1])
    assert torch.allclose(mean["l.lora_A.weight"], 0.75 * a["l.lora_A.weight"] + 0.25 * b["l.lora_A.weight"])
    gap = product(average_factors(both, [3.0, 1.0])) - product(average_products(both, [3.0, 1.0]))
    assert gap.abs().max() > 0.1
