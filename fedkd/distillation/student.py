"""The student: a LoRA adapter on the shared denoiser, or every weight of a copy of it."""

from __future__ import annotations

import copy
from typing import Any

import torch
from diffusers import DiffusionPipeline
from safetensors.torch import load, save

from fedkd.models.adapter import (
    AdapterError,
    adapter_bytes,
    adapter_per_row,
    add_adapter,
    file_metadata,
    load_adapter,
    merge_adapter,
)
from fedkd.models.conditioning import Conditions, predict
from fedkd.models.pipeline import denoiser_of
from fedkd.recipe import DistillationConfig

NAME, PREVIOUS = "student", "previous"
FULL = {"student": "full"}


class Student:
    """What learns. `parameters` (float32) take gradients; `previous` is a frozen copy of an earlier self."""

    def __init__(self, denoiser: Any, config: DistillationConfig, seed: int) -> None:
        self.denoiser, self.full = denoiser, config.student == "full"
        if self.full:
            if getattr(denoiser, "peft_config", None):
                raise ValueError("a full student is copied from the base before adapters are loaded")
            self.module = copy.deepcopy(denoiser).float().requires_grad_(True)
            self.parameters = list(self.module.parameters())
        else:
            self.module = denoiser
            self.parameters = add_adapter(denoiser, NAME, config.lora, seed)
        self.before: Any = None

    def predict(self, x_t: torch.Tensor, timesteps: torch.Tensor, conditions: Conditions) -> torch.Tensor:
        """The student's raw output (B, C, h, w), with gradients."""
        if not self.full and self.module.active_adapters() != [NAME]:
            self.module.set_adapter(NAME)
        return predict(self.module, x_t, timesteps, conditions)

    def remember(self) -> None:
        """Keep the present weights as `previous`: the teacher of a progressive method's next phase."""
        if self.full:
            self.before = copy.deepcopy(self.module).requires_grad_(False)
            return
        if PREVIOUS in self.denoiser.peft_config:
            self.denoiser.delete_adapters(PREVIOUS)
        load_adapter(self.denoiser, adapter_bytes(self.denoiser, NAME), PREVIOUS)
        self.denoiser.set_adapter(NAME)
        self.before = PREVIOUS

    @torch.no_grad()
    def move_previous(self, decay: float) -> None:
        """Move the remembered weights towards the present ones: previous = decay previous + (1 - decay) present."""
        for before, now in zip(self._remembered(), self.parameters, strict=True):
            before.lerp_(now, 1 - decay)

    @torch.no_grad()
    def previous(self, x_t: torch.Tensor, timesteps: torch.Tensor, conditions: Conditions) -> torch.Tensor:
        """The raw output (B, C, h, w) of the remembered self, without gradient."""
        if self.full:
            return predict(self.before, x_t, timesteps, conditions)
        with adapter_per_row(self.denoiser, [PREVIOUS] * len(x_t)):
            return predict(self.denoiser, x_t, timesteps, conditions)

    def state(self) -> dict[str, torch.Tensor]:
        """The weights that learn, and the remembered ones, by name."""
        tensors = {f"{NAME}.{i}": p.detach() for i, p in enumerate(self.parameters)}
        return tensors | {f"{PREVIOUS}.{i}": p.detach() for i, p in enumerate(self._remembered())}

    def load_state(self, tensors: dict[str, torch.Tensor]) -> None:
        """Put a saved state back."""
        if f"{PREVIOUS}.0" in tensors:
            self.remember()
        with torch.no_grad():
            for prefix, parameters in ((NAME, self.parameters), (PREVIOUS, self._remembered())):
                for i, parameter in enumerate(parameters):
                    parameter.copy_(tensors[f"{prefix}.{i}"])

    def _remembered(self) -> list[torch.nn.Parameter]:
        if self.before is None:
            return []
        if self.full:
            return list(self.before.parameters())
        return [p for n, p in self.denoiser.named_parameters() if f".{PREVIOUS}." in n]

    def to_bytes(self) -> bytes:
        """The student as safetensors: an adapter file, or all weights in float32."""
        if not self.full:
            return adapter_bytes(self.denoiser, NAME)
        state = {key: value.detach().cpu().contiguous().clone() for key, value in self.module.state_dict().items()}
        return save(state, metadata=FULL)


def is_full(data: bytes) -> bool:
    """Whether student bytes hold all weights rather than an adapter."""
    return file_metadata(data) == FULL


def install_student(pipe: DiffusionPipeline, data: bytes) -> None:
    """Put a student's weights into the pipeline's denoiser; AdapterError when they do not fit or are not finite."""
    if not is_full(data):
        merge_adapter(pipe, data)
        return
    tensors = load(data)
    if not all(torch.isfinite(t).all() for t in tensors.values()):
        raise AdapterError("the student has weights that are not finite; lower distillation.learning_rate")
    try:
        denoiser_of(pipe).load_state_dict(tensors)
    except RuntimeError as error:
        raise AdapterError(f"the student does not fit this model: {str(error).splitlines()[-1].strip()}") from error
