"""The state of a training run as one safetensors file: what a later process needs to go on bit for bit."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import torch
from diffusers.training_utils import EMAModel
from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file, save_file

Tensors = dict[str, torch.Tensor]


def save_state(path: Path, facts: dict[str, Any], tensors: Tensors) -> None:
    """Write `tensors` and JSON `facts` to `path`, whole or not at all."""
    path.parent.mkdir(parents=True, exist_ok=True)
    part = path.with_name(path.name + ".part")
    copies = {key: tensor.detach().cpu().contiguous().clone() for key, tensor in tensors.items()}
    save_file(copies, part, metadata={"state": json.dumps(facts)})
    os.replace(part, path)


def load_state(path: Path) -> tuple[dict[str, Any], Tensors] | None:
    """(facts, tensors) of a saved state, or None when there is none; ValueError when it cannot be read."""
    if not path.is_file():
        return None
    try:
        with safe_open(path, "pt") as opened:
            facts = json.loads(opened.metadata()["state"])
        return facts, load_file(path)
    except (SafetensorError, KeyError, TypeError, ValueError) as error:
        raise ValueError(f"the saved state '{path}' cannot be read ({error}); delete it to start over") from error


def optimizer_tensors(optimizer: torch.optim.Optimizer) -> Tensors:
    """The optimiser's moments and step counts as `optimizer.PARAMETER.FIELD`."""
    state = optimizer.state_dict()["state"]
    return {f"optimizer.{i}.{key}": torch.as_tensor(value) for i, s in state.items() for key, value in s.items()}


def restore_optimizer(optimizer: torch.optim.Optimizer, tensors: Tensors) -> None:
    """Put back what `optimizer_tensors` gave."""
    saved = optimizer.state_dict()
    for name, value in tensors.items():
        if name.startswith("optimizer."):
            _, place, field = name.split(".", 2)
            saved["state"].setdefault(int(place), {})[field] = value
    optimizer.load_state_dict(saved)


def ema_tensors(ema: EMAModel | None) -> Tensors:
    """The moving averages as `ema.PARAMETER`."""
    return {f"ema.{i}": tensor for i, tensor in enumerate(ema.shadow_params)} if ema else {}


def restore_ema(ema: EMAModel | None, tensors: Tensors, steps_done: int) -> None:
    """Put back what `ema_tensors` gave after `steps_done` steps."""
    if ema:
        places = range(len(ema.shadow_params))
        ema.shadow_params = [tensors[f"ema.{i}"].to(ema.shadow_params[i].device) for i in places]
        ema.optimization_step = steps_done
