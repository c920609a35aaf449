"""FedAvg of adapters: the baselines that the distilled student has to beat."""

from __future__ import annotations

import json

import torch
from safetensors.torch import save

from fedkd.distillation.losses import normalised
from fedkd.models.adapter import adapter_config, check_adapter


def average_factors(adapters: list[bytes], weights: list[float]) -> bytes:
    """FedAvg of A and of B separately: what averaging the adapter files gives."""
    share = normalised(torch.tensor(weights)).tolist()
    tensors = [check_adapter(data) for data in adapters]
    mean = {key: sum(w * t[key] for w, t in zip(share, tensors, strict=True)) for key in tensors[0]}
    return save(mean, metadata={"lora": json.dumps(adapter_config(adapters[0]), sort_keys=True)})


def average_products(adapters: list[bytes], weights: list[float]) -> bytes:
    """FedAvg of the products BA, exact: factors side by side, so the rank is the sum of the ranks."""
    share = normalised(torch.tensor(weights)).tolist()
    tensors = [check_adapter(data) for data in adapters]
    config = adapter_config(adapters[0])
    joined = {}
    for key in tensors[0]:
        if ".lora_A." in key:
            joined[key] = torch.cat([t[key] for t in tensors])
        else:
            joined[key] = torch.cat([w * t[key] for w, t in zip(share, tensors, strict=True)], dim=1)
    count = len(adapters)
    wide = config | {"r": config["r"] * count, "lora_alpha": config["lora_alpha"] * count}
    return save(joined, metadata={"lora": json.dumps(wide, sort_keys=True)})
