"""LoRA adapters as safetensors bytes: made, checked, loaded by name, and merged."""

from __future__ import annotations

import json
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from diffusers import DiffusionPipeline
from peft import LoraConfig as PeftLoraConfig
from peft import get_peft_model_state_dict
from peft.tuners.tuners_utils import BaseTunerLayer
from safetensors.torch import load, save

from fedkd.models.pipeline import denoiser_of
from fedkd.recipe import LoraConfig


class AdapterError(ValueError):
    """Adapter bytes that are malformed, not finite, or made for another model."""


def peft_config(config: LoraConfig) -> PeftLoraConfig:
    """The recipe's LoRA section as PEFT's own config."""
    return PeftLoraConfig(
        r=config.rank,
        lora_alpha=config.alpha,
        target_modules=list(config.target_modules),
        init_lora_weights="gaussian",
    )


def _attach(denoiser: Any, name: str, config: LoraConfig) -> None:
    with warnings.catch_warnings():
        # Several adapters on one model are what we want; PEFT warns of the second.
        warnings.filterwarnings("ignore", message="Already found a `peft_config`")
        denoiser.add_adapter(peft_config(config), adapter_name=name)


def add_adapter(denoiser: Any, name: str, config: LoraConfig, seed: int) -> list[torch.nn.Parameter]:
    """Add a fresh adapter, make it the active one, and return its trainable parameters (float32)."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        _attach(denoiser, name, config)
    denoiser.set_adapter(name)
    trained = [p for n, p in denoiser.named_parameters() if f".{name}." in n]
    for parameter in trained:
        parameter.data = parameter.data.float()
        parameter.requires_grad_(True)
    return trained


def adapter_bytes(denoiser: Any, name: str) -> bytes:
    """The adapter's weights and config as one safetensors file (its config in the header)."""
    state = get_peft_model_state_dict(denoiser, adapter_name=name)
    config = denoiser.peft_config[name]
    header = {"r": config.r, "lora_alpha": config.lora_alpha, "target_modules": sorted(config.target_modules)}
    tensors = {key: value.detach().cpu().contiguous().clone() for key, value in sorted(state.items())}
    # One entry only: safetensors writes several in no fixed order, and equal adapters should be equal bytes.
    return save(tensors, metadata={"lora": json.dumps(header, sort_keys=True)})


def file_metadata(data: bytes) -> dict[str, str]:
    """The metadata in the header of safetensors bytes; AdapterError when they are none."""
    size = int.from_bytes(data[:8], "little")
    if not 2 <= size <= min(len(data) - 8, 10_000_000):
        raise AdapterError("the adapter cannot be read: it is not a safetensors file")
    try:
        return dict(json.loads(data[8 : 8 + size]).get("__metadata__", {}))
    except ValueError as error:
        raise AdapterError("the adapter cannot be read: its safetensors header is broken") from error


def adapter_config(data: bytes) -> dict[str, Any]:
    """The adapter's `r`, `lora_alpha` and `target_modules`; AdapterError when its header has none."""
    try:
        return dict(json.loads(file_metadata(data)["lora"]))
    except (KeyError, ValueError) as error:
        raise AdapterError("the adapter's header names no LoRA config") from error


def check_adapter(data: bytes, denoiser: Any = None) -> dict[str, torch.Tensor]:
    """The adapter's tensors; AdapterError when malformed, not finite, or of other shapes than `denoiser`'s."""
    try:
        tensors = load(data)
        lora = json.loads(file_metadata(data)["lora"])
        rank = int(lora["r"])
    except AdapterError:
        raise
    except Exception as error:
        raise AdapterError(f"the adapter cannot be read: {error}") from error
    if not tensors:
        raise AdapterError("the adapter has no tensors")
    modules = dict(denoiser.named_modules()) if denoiser is not None else {}
    for key, tensor in tensors.items():
        if not torch.isfinite(tensor).all():
            raise AdapterError(f"the adapter's tensor '{key}' is not finite")
        if denoiser is None:
            continue
        path, _, kind = key.rpartition(".lora_")
        module = modules.get(path)
        layer = getattr(module, "base_layer", module)
        weight = getattr(layer, "weight", None)
        expected = None
        if isinstance(weight, torch.Tensor) and weight.ndim == 2:
            expected = (rank, weight.shape[1]) if kind.startswith("A") else (weight.shape[0], rank)
        if weight is None or (expected is not None and tuple(tensor.shape) != expected):
            raise AdapterError(f"the adapter's tensor '{key}' {tuple(tensor.shape)} does not fit this model")
    return tensors


def load_adapter(denoiser: Any, data: bytes, name: str) -> None:
    """Add the adapter under `name`; whatever was active stays active. Raises AdapterError."""
    tensors = check_adapter(data, denoiser)
    lora = adapter_config(data)
    config = LoraConfig(rank=lora["r"], alpha=lora["lora_alpha"], target_modules=list(lora["target_modules"]))
    active = denoiser.active_adapters() if getattr(denoiser, "peft_config", None) else []
    with torch.random.fork_rng(devices=[]):
        _attach(denoiser, name, config)
    if active:
        denoiser.set_adapter(active)  # what is added becomes the active one, and the others lose their gradients
    expected = get_peft_model_state_dict(denoiser, adapter_name=name)
    unlike = set(expected) ^ set(tensors)
    wrong = unlike or {key for key, tensor in expected.items() if tensor.shape != tensors[key].shape}
    if wrong:
        denoiser.delete_adapters(name)
        what = "is missing or unknown" if unlike else "has another shape"
        raise AdapterError(f"the adapter does not fit this model: tensor '{min(wrong)}' {what}")
    with torch.no_grad():
        parameters = {n: p for n, p in denoiser.named_parameters() if f".{name}." in n}
        for key, value in tensors.items():
            path, _, rest = key.partition(".lora_")
            side, _, tail = rest.partition(".")
            target = parameters[f"{path}.lora_{side}.{name}.{tail}"]
            target.data = value.to(target.device, torch.float32)
            target.requires_grad_(False)


@contextmanager
def adapter_per_row(denoiser: Any, names: list[str | None]) -> Iterator[None]:
    """Within the context row i of a batch goes through the adapter `names[i]`; None is the bare network.

    What is active, and what takes gradients, stays as it is. Raises AdapterError for an unknown name.
    """
    known = set(getattr(denoiser, "peft_config", None) or {})
    unknown = sorted({name for name in names if name is not None} - known)
    if unknown:
        raise AdapterError(f"no adapter '{unknown[0]}' is loaded; loaded: {', '.join(sorted(known)) or 'none'}")
    rows = ["__base__" if name is None else name for name in names]

    def choose(_: Any, args: Any, kwargs: dict[str, Any]) -> Any:
        return args, kwargs | {"adapter_names": rows}

    # diffusers does not pass `adapter_names` down to PEFT's layers.
    layers = [layer for layer in denoiser.modules() if isinstance(layer, BaseTunerLayer)]
    hooks = [torch.nn.Module.register_forward_pre_hook(layer, choose, with_kwargs=True) for layer in layers]
    # A checkpointed block would be computed again in the backward pass, when the rows' names are gone.
    checkpointed = [module for module in denoiser.modules() if getattr(module, "gradient_checkpointing", False)]
    for module in checkpointed:
        module.gradient_checkpointing = False
    try:
        yield
    finally:
        for module in checkpointed:
            module.gradient_checkpointing = True
        for hook in hooks:
            hook.remove()


def remove_adapters(denoiser: Any) -> None:
    """Take every LoRA layer out, so that the module tree is as it was loaded."""
    if getattr(denoiser, "peft_config", None):
        denoiser.unload_lora()
        denoiser._hf_peft_config_loaded = False


def merge_adapter(pipe: DiffusionPipeline, data: bytes) -> None:
    """Merge the adapter into the denoiser's weights and remove the LoRA layers."""
    denoiser = denoiser_of(pipe)
    load_adapter(denoiser, data, "merged")
    denoiser.set_adapter("merged")
    denoiser.fuse_lora(adapter_names=["merged"], safe_fusing=True)
    remove_adapters(denoiser)


def diffusers_lora_bytes(data: bytes, component: str = "unet", dtype: torch.dtype | None = None) -> bytes:
    """The same adapter in diffusers' own LoRA file form (`pytorch_lora_weights.safetensors`).

    `component` is the pipeline's name for the denoiser: unet, or transformer (SD3). Weights are cast to `dtype`.
    """
    lora = adapter_config(data)
    # The file form has no alpha of its own: without one diffusers takes alpha = rank, so fold the scale in.
    scale = lora["lora_alpha"] / lora["r"]
    weights = check_adapter(data).items()
    tensors = {f"{component}.{key}": value * scale if ".lora_B." in key else value for key, value in weights}
    return save({key: value.to(dtype or value.dtype) for key, value in tensors.items()}, metadata={"format": "pt"})
