"""A base and its LoRA student as versions of one model, at Stable Diffusion 1.5's real size or the shipped one's."""

from __future__ import annotations

import json
import math
import shutil
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from fedkd.checkpoints.registry import Registry

NAME = "model"
ATTENTION = ("to_q.weight", "to_k.weight", "to_v.weight", "to_out.0.weight")
TEXT_ENCODER_BYTES, VAE_BYTES = 246_144_152, 167_335_342  # of Stable Diffusion 1.5 in fp16
CHUNK = 1 << 24


def stable_diffusion(folder: Path) -> Path:
    """A pipeline folder with random fp16 weights whose UNet has Stable Diffusion 1.5's tensors, all 860 million."""
    import torch
    from diffusers import UNet2DConditionModel

    with torch.device("meta"):
        shapes = {k: list(v.shape) for k, v in UNet2DConditionModel(cross_attention_dim=768).state_dict().items()}
    write_weights(folder / "unet" / "diffusion_pytorch_model.safetensors", shapes, 0)
    for seed, (part, size) in enumerate({"text_encoder": TEXT_ENCODER_BYTES, "vae": VAE_BYTES}.items(), 1):
        write_weights(folder / part / "model.safetensors", {"weight": [size // 2]}, seed)
    (folder / "model_index.json").write_text(json.dumps({"_class_name": "StableDiffusionPipeline"}))
    return folder


def write_weights(path: Path, shapes: dict[str, list[int]], seed: int) -> None:
    """A safetensors file of normal fp16 numbers, written piece by piece."""
    header, at = {}, 0
    for name, shape in shapes.items():
        size = 2 * math.prod(shape)
        header[name] = {"dtype": "F16", "shape": shape, "data_offsets": [at, at + size]}
        at += size
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8)
    dice = np.random.default_rng(seed)
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("wb") as stream:
        stream.write(len(text).to_bytes(8, "little") + text)
        for begin in range(0, at // 2, CHUNK):
            numbers = dice.standard_normal(min(CHUNK, at // 2 - begin), dtype=np.float32)
            stream.write((0.02 * numbers).astype("<f2").tobytes())


def lora_for(unet: Path, rank: int, seed: int) -> bytes:
    """A LoRA file for the attention of a UNet, random by `seed`."""
    from safetensors import safe_open
    from safetensors.numpy import save

    dice, lora = np.random.default_rng(seed), {}
    with safe_open(unet, "np") as weights:
        for name in weights.keys():  # noqa: SIM118 (no mapping)
            if name.endswith(ATTENTION):
                rows, columns = weights.get_slice(name).get_shape()
                stem = f"unet.{name.removesuffix('.weight')}"
                lora[f"{stem}.lora_A.weight"] = (0.01 * dice.standard_normal((rank, columns))).astype(np.float16)
                lora[f"{stem}.lora_B.weight"] = (0.01 * dice.standard_normal((rows, rank))).astype(np.float16)
    return save(lora)


def base_and_student(source: Path, folder: Path, rank: int) -> Registry:
    """A registry with v0, and its student v1, in which only the UNet's LoRA differs."""
    from fedkd.checkpoints.derivation import derive_student
    from fedkd.checkpoints.registry import Registry

    registry = Registry(folder / "two-versions")
    parent = registry.folder(registry.publish(source, name=NAME).reference)
    child = folder / "child"
    shutil.copytree(parent, child, ignore=shutil.ignore_patterns("unet", "manifest.json"))
    for other in (parent / "unet").glob("*.json"):
        (child / "unet").mkdir(exist_ok=True)
        shutil.copyfile(other, child / "unet" / other.name)
    lora = lora_for(next((parent / "unet").glob("*.safetensors")), rank, 0)
    derived = derive_student(parent, child, lora, "unet")
    registry.publish(child, name=NAME, parents=[f"{NAME}:v0"], derived=derived)
    shutil.rmtree(child)
    return registry
