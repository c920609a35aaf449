"""The update ΔW = (alpha/r) B A that a LoRA adapter makes: its size against the weights, and how two of them agree.

Everything is computed from r × r products (‖BA‖² = <BᵀB, AAᵀ>), never from ΔW itself.
"""

from __future__ import annotations

import math
from typing import Any

import torch

from fedkd.models.adapter import adapter_config, check_adapter

Update = dict[str, tuple[torch.Tensor, torch.Tensor]]  # layer → A (r, in), B (out, r), the scale within B


def update_of(data: bytes) -> Update:
    """The update of adapter bytes by layer, in float64; AdapterError when they are malformed or not finite."""
    tensors, lora = check_adapter(data), adapter_config(data)
    scale = float(lora["lora_alpha"]) / float(lora["r"])
    found: Update = {}
    for key, tensor in sorted(tensors.items()):
        layer, _, side = key.partition(".lora_A.")
        other = tensors.get(f"{layer}.lora_B.{side}")
        if side and other is not None:
            found[layer] = tensor.flatten(1).double(), scale * other.flatten(1).double()
    return found


def inner(one: Update, other: Update) -> float:
    """<ΔW_1, ΔW_2> over the layers that both change."""
    total = 0.0
    for layer in one.keys() & other.keys():
        (a1, b1), (a2, b2) = one[layer], other[layer]
        total += float(((b1.T @ b2) * (a1 @ a2.T)).sum())
    return total


def norm(update: Update) -> float:
    """‖ΔW‖ (Frobenius) over all layers."""
    return math.sqrt(max(0.0, inner(update, update)))


def cosine(one: Update, other: Update) -> float:
    """<ΔW_1, ΔW_2> / (‖ΔW_1‖ ‖ΔW_2‖), from -1 to 1; 0 when one of them changes nothing."""
    size = norm(one) * norm(other)
    return inner(one, other) / size if size > 0 else 0.0


def largest_share(update: Update, denoiser: Any) -> tuple[float, str]:
    """The largest ‖ΔW‖/‖W‖ (Frobenius) of any layer that the update changes, and that layer's name."""
    modules: dict[str, Any] = dict(denoiser.named_modules())
    worst = (0.0, "")
    for layer, pair in update.items():
        module = modules[layer]
        weight = getattr(module, "base_layer", module).weight
        share = norm({layer: pair}) / max(float(weight.double().norm()), 1e-12)
        worst = max(worst, (share if math.isfinite(share) else math.inf, layer))
    return worst
