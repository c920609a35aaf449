"""A ControlNet on disk: a plain diffusers folder, and beside it what it is steered by, pinned by digest."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import uuid
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from diffusers import ControlNetModel

from fedkd.models.pipeline import DTYPES, LOADING
from fedkd.models.source import SHIPPED, ModelError

FACTS = "condition.json"
WEIGHTS = "diffusion_pytorch_model.safetensors"
SAME = ("in_channels", "cross_attention_dim", "block_out_channels", "layers_per_block")  # as in its UNet


class Unfit(ModelError):
    """A ControlNet that is sound, but was made for another model."""


@dataclass(frozen=True)
class ControlNetFolder:
    """A ControlNet's `folder` (or hub id), the `kind` of condition that steers it, and the digest of its weights.

    `digest` is empty for one that does not say.
    """

    folder: str
    kind: str
    digest: str = ""


def find_controlnet(given: str, kinds: tuple[str, ...]) -> ControlNetFolder:
    """What `[KIND=]PLACE` names: a ControlNet shipped under that name, a folder or a hub id.

    A folder of `save_controlnet` says its kind itself. ModelError names what is wrong.
    """
    kind, equals, place = given.partition("=") if "=" in given else ("", "", given)
    if equals and kind not in kinds:
        raise ModelError(f"controlnet={given}: no condition {kind!r}; known: {', '.join(kinds)}")
    folder = SHIPPED / place if place and (SHIPPED / place / "config.json").is_file() else Path(place).expanduser()
    is_folder = bool(place) and folder.is_dir()
    if not is_folder and (place.count("/") != 1 or place.startswith((".", "/", "~"))):
        raise ModelError(f"controlnet={given}: no folder '{place}'; give a ControlNet's folder or hub id")
    facts = _facts(folder) if is_folder else {}
    said = str(facts.get("kind", ""))
    if kind and said and kind != said:
        raise ModelError(f"controlnet={given}: it is steered by {said}, not {kind}; leave '{kind}=' out")
    if not (kind or said):
        raise ModelError(f"controlnet={given} does not say its condition; give KIND={place}, KIND: {', '.join(kinds)}")
    return ControlNetFolder(str(folder) if is_folder else place, kind or said, str(facts.get("sha256", "")))


def load_controlnet(found: ControlNetFolder, unet: Any, *, device: str = "cpu", dtype: str = "float32") -> Any:
    """The ControlNet, frozen, for a pipeline's `unet`.

    ModelError when its weights are not those that the folder pins, cannot be read, or belong to another UNet.
    """
    folder = Path(found.folder)
    if found.digest:
        path = folder / WEIGHTS
        here = _sha256(path) if path.is_file() else "missing"
        if here != found.digest:
            raise ModelError(
                f"controlnet={folder}: {WEIGHTS} is {here[:12]}, and {FACTS} pins {found.digest[:12]}; fetch it again"
            )
    try:
        with LOADING:
            net = ControlNetModel.from_pretrained(
                found.folder,
                torch_dtype=DTYPES[dtype],
                use_safetensors=True,
                local_files_only=folder.is_dir() or bool(os.environ.get("HF_HUB_OFFLINE")),
            )
    except Exception as error:
        reason = str(error).strip().splitlines()
        raise ModelError(
            f"controlnet={found.folder} cannot be loaded: {reason[0] if reason else type(error).__name__}; "
            "give a ControlNet's diffusers folder with safetensors weights"
        ) from error
    for name in SAME:
        mine, theirs = getattr(net.config, name, None), getattr(unet.config, name, None)
        if _listed(mine) != _listed(theirs):
            raise Unfit(
                f"controlnet={found.folder} has {name}={mine}, the model's UNet {theirs}; give one made for this model"
            )
    if net.config.global_pool_conditions:
        raise ModelError(f"controlnet={found.folder} pools its residuals (shuffle), which is not supported")
    if not all(torch.isfinite(weight).all() for weight in net.parameters()):
        raise ModelError(f"controlnet={found.folder} has weights that are not finite; fetch it again")
    return net.requires_grad_(False).eval().to(device)


def save_controlnet(net: Any, folder: Path, kind: str, about: dict[str, Any], card: str = "") -> None:
    """Write a ControlNet's folder in float16, its condition and digest beside it; it appears whole or not at all."""
    folder = Path(folder)
    part = folder.with_name(f".{folder.name}.{uuid.uuid4().hex[:8]}.part")
    half = ControlNetModel.from_config(net.config)
    half.load_state_dict(net.state_dict())
    torch.nn.Module.to(half, torch.float16)
    half.save_pretrained(str(part), safe_serialization=True)
    facts = {"kind": kind, "sha256": _sha256(part / WEIGHTS), **about}
    (part / FACTS).write_text(json.dumps(facts, indent=2) + "\n", encoding="utf-8")
    if card:
        (part / "README.md").write_text(card, encoding="utf-8")
    if folder.exists():
        shutil.rmtree(folder)
    os.replace(part, folder)


def _facts(folder: Path) -> dict[str, Any]:
    path = folder / FACTS
    if not path.is_file():
        return {}
    try:
        facts = json.loads(path.read_text("utf-8"))
    except ValueError as error:
        raise ModelError(f"controlnet={folder}: {FACTS} cannot be read; fetch it again") from error
    if not isinstance(facts, dict):
        raise ModelError(f"controlnet={folder}: {FACTS} cannot be read; fetch it again")
    return facts


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _listed(value: Any) -> Any:
    return list(value) if isinstance(value, list | tuple) else value
