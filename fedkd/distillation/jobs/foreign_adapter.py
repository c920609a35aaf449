"""LoRA files as other programs write them, brought into fedkd's own form."""

from __future__ import annotations

import json
import re
from typing import Any

import torch
from diffusers.utils.state_dict_utils import convert_unet_state_dict_to_peft
from safetensors.torch import load, save

from fedkd.models.adapter import AdapterError, file_metadata

PREFIXES = ("unet.", "transformer.")
WEIGHT = re.compile(r"\.lora_(A|B)(?:\.default)?\.weight$")


def own_form(data: bytes) -> bytes:
    """The adapter of a file in fedkd's form (as it is) or in diffusers' LoRA form; AdapterError when it is neither.

    Ranks and alphas that differ from module to module are padded to the largest rank and folded into B.
    """
    header = file_metadata(data)
    if "lora" in header:
        return data
    try:
        tensors = {key: tensor.float() for key, tensor in load(data).items()}
    except Exception as error:
        raise AdapterError(f"cannot be read: {error}") from error
    told = json.loads(header.get("lora_adapter_metadata", "{}"))
    kept: dict[str, torch.Tensor] = {}
    for key, tensor in tensors.items():
        prefix = next((prefix for prefix in PREFIXES if key.startswith(prefix)), None)
        if prefix is None:
            what = "text-encoder weights" if key.startswith("text_encoder") else f"a tensor '{key}'"
            raise AdapterError(
                f"has {what}; a teacher changes the denoiser alone, in diffusers' LoRA form "
                "(unet.….lora_A.weight or unet.….lora.down.weight)"
            )
        kept[key.removeprefix(prefix)] = tensor
    told = {key.split(".", 1)[-1]: value for key, value in told.items()}
    alphas = {key.removesuffix(".alpha"): float(kept.pop(key)) for key in list(kept) if key.endswith(".alpha")}
    return _packed(convert_unet_state_dict_to_peft(kept), alphas, told)


def _packed(weights: dict[str, torch.Tensor], alphas: dict[str, float], told: dict[str, Any]) -> bytes:
    """fedkd's form from `MODULE.lora_A.weight` (r, in) and `MODULE.lora_B.weight` (out, r)."""
    pairs: dict[str, dict[str, torch.Tensor]] = {}
    for key, tensor in weights.items():
        found = WEIGHT.search(key)
        if not found:
            raise AdapterError(f"has a tensor '{key}' that is no plain LoRA weight; give a LoRA of lora_A and lora_B")
        pairs.setdefault(key[: found.start()], {})[found.group(1)] = tensor
    if not pairs:
        raise AdapterError("has no tensors")
    broken = [path for path, pair in pairs.items() if len(pair) != 2 or pair["A"].shape[0] != pair["B"].shape[1]]
    if broken:
        raise AdapterError(f"has no matching lora_A and lora_B for '{broken[0]}'")
    rank = max(pair["A"].shape[0] for pair in pairs.values())
    packed: dict[str, torch.Tensor] = {}
    for path, pair in pairs.items():
        own = pair["A"].shape[0]
        alpha = alphas.get(path, told.get("alpha_pattern", {}).get(path, told.get("lora_alpha", own)))
        scale = float(alpha) / (own**0.5 if told.get("use_rslora") else own)
        more = rank - own
        packed[f"{path}.lora_A.weight"] = _padded(pair["A"], 0, more)
        packed[f"{path}.lora_B.weight"] = _padded(pair["B"] * scale if scale != 1 else pair["B"], 1, more)
    lora = {"r": rank, "lora_alpha": rank, "target_modules": sorted(pairs)}
    return save(packed, metadata={"lora": json.dumps(lora, sort_keys=True)})


def _padded(tensor: torch.Tensor, axis: int, more: int) -> torch.Tensor:
    if not more:
        return tensor.contiguous()
    shape = list(tensor.shape)
    shape[axis] = more
    return torch.cat([tensor, tensor.new_zeros(shape)], dim=axis)
