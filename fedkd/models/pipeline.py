"""Loading and saving Stable Diffusion pipelines as diffusers folders, from disk or from a hub."""

from __future__ import annotations

import inspect
import json
import logging
import os
import shutil
import threading
import uuid
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import diffusers
import diffusers.utils.logging
import torch
import transformers.utils.logging
from diffusers import DiffusionPipeline

from fedkd.models.source import ModelError, resolve_model


class _WithoutTorchvision(logging.Filter):
    """Drops transformers' notices that image processors fall back without torchvision; nothing else."""

    def filter(self, record: logging.LogRecord) -> bool:
        return "requires torchvision" not in record.getMessage()


# Ours is the progress worth showing; the loaders' own bars interleave with it.
diffusers.utils.logging.disable_progress_bar()
transformers.utils.logging.disable_progress_bar()
for _name in ("transformers", "transformers.utils.import_utils", "transformers.models.auto"):
    logging.getLogger(_name).addFilter(_WithoutTorchvision())

DTYPES: dict[str, torch.dtype] = {
    "float32": torch.float32,
    "float16": torch.float16,
    "bfloat16": torch.bfloat16,
}
LOADING = threading.RLock()  # diffusers loads by way of global state: two threads at once get empty weights


def load_pipeline(
    path: str,
    *,
    device: str = "cpu",
    dtype: str = "float32",
    scheduler: str | None = None,
    without: Sequence[str] = (),
) -> DiffusionPipeline:
    """Load any SD 1.x, 2.x, SDXL or SD3 pipeline, safetensors only, in eval mode.

    `scheduler` names a diffusers scheduler class that replaces the folder's own, with its config; `without`
    names components to leave out, such as SD3's text_encoder_3 and tokenizer_3.
    Raises ModelError when the folder is missing, corrupt or not finite.
    """
    if dtype not in DTYPES:
        raise ModelError(f"run.dtype={dtype!r} is not known; give one of {', '.join(DTYPES)}")
    source = resolve_model(path)
    try:
        with LOADING:
            pipe = DiffusionPipeline.from_pretrained(
                source,
                dtype=DTYPES[dtype],
                use_safetensors=True,
                **(_left_out(Path(source)) | dict.fromkeys(without)),
                local_files_only=Path(source).is_dir() or bool(os.environ.get("HF_HUB_OFFLINE")),
            )
    except Exception as error:
        reason = str(error).strip().splitlines()
        raise ModelError(
            f"cannot load the model '{path}': {reason[0] if reason else type(error).__name__}; "
            "give a complete diffusers folder with safetensors weights"
        ) from error
    if scheduler:
        pipe.scheduler = named_scheduler(scheduler).from_config(pipe.scheduler.config)
    pipe.set_progress_bar_config(disable=True)
    for component in pipe.components.values():
        if isinstance(component, torch.nn.Module):
            component.requires_grad_(False).eval()
    if not all(torch.isfinite(p).all() for p in denoiser_of(pipe).parameters()):
        raise ModelError(f"the denoiser of '{path}' has weights that are not finite; fetch the model again")
    return pipe.to(device)


def _open_in_float32(folder: Path) -> None:
    """Let text encoders open in float32 when no dtype is asked for, as diffusers opens everything else.

    transformers would take the stored half precision, and a pipeline of two dtypes cannot draw.
    """
    for path in folder.glob("text_encoder*/config.json"):
        config = json.loads(path.read_text(encoding="utf-8"))
        path.write_text(json.dumps({**config, "dtype": "float32"}, indent=2, sort_keys=True) + "\n", encoding="utf-8")


def _left_out(folder: Path) -> dict[str, None]:
    """Components that a local folder goes without, such as SD3's T5, which diffusers wants named as None."""
    if not folder.is_dir():
        return {}
    index = json.loads((folder / "model_index.json").read_text("utf-8"))
    pipeline = getattr(diffusers, str(index.get("_class_name")), None)
    if pipeline is None:
        return {}
    wanted = inspect.signature(pipeline.__init__).parameters
    return {n: None for n, p in wanted.items() if n != "self" and index.get(n, p.default) in (p.empty, [None, None])}


def named_scheduler(name: str) -> Any:
    """The diffusers scheduler class called `name`; ModelError when diffusers has none."""
    found = getattr(diffusers, name, None) if name.endswith("Scheduler") else None
    if found is None:
        raise ModelError(f"model.scheduler={name!r} is not a diffusers scheduler; try 'DDIMScheduler'")
    return found


def device_of(pipe: DiffusionPipeline) -> torch.device:
    """Where the pipeline computes. Its own `device` looks at every module, which takes longer than a small step."""
    return next(denoiser_of(pipe).parameters()).device


def denoiser_of(pipe: DiffusionPipeline) -> Any:
    """The network that predicts noise: `pipe.unet`, or `pipe.transformer` (SD3)."""
    unet = getattr(pipe, "unet", None)
    return unet if unet is not None else pipe.transformer


def save_pipeline(pipe: DiffusionPipeline, folder: Path, dtype: str = "float16") -> None:
    """Write a plain diffusers folder in `dtype`, safetensors only; it appears whole or not at all.

    An existing `folder` is replaced. The pipeline itself keeps its dtype.
    """
    folder = Path(folder)
    part = folder.with_name(f".{folder.name}.{uuid.uuid4().hex[:8]}.part")
    modules = {k: m for k, m in pipe.components.items() if isinstance(m, torch.nn.Module)}
    state = {k: {n: t.detach().clone() for n, t in m.state_dict().items()} for k, m in modules.items()}
    before = {k: next(m.parameters()).dtype for k, m in modules.items()}
    try:
        for module in modules.values():
            torch.nn.Module.to(module, DTYPES[dtype])  # diffusers' own .to() warns of components to keep in float32
        pipe.save_pretrained(str(part), safe_serialization=True)
        _open_in_float32(part)
    finally:
        for key, module in modules.items():
            torch.nn.Module.to(module, before[key])
            module.load_state_dict(state[key])
    if folder.exists():
        shutil.rmtree(folder)
    os.replace(part, folder)
