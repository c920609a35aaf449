"""The parts of an edge's model that a device holds: fetched by digest once, or a smaller denoiser of its own."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import diffusers
import psutil
import torch

from fedkd.models.control import ControlledUNet
from fedkd.models.controlnet_folder import ControlNetFolder, load_controlnet
from fedkd.models.pipeline import DTYPES, LOADING
from fedkd.models.source import ModelError
from fedkd.serving.fallback import DeviceCannot
from fedkd.serving.fetch import FetchError, fetch_blob, fetch_component, files_of
from fedkd.serving.protocol import Steps, Work

DENOISERS = {"UNet2DConditionModel": "unet", "SD3Transformer2DModel": "transformer"}
DECODERS = {"AutoencoderKL": "vae"}
SAME_DENOISER = ("in_channels", "out_channels", "sample_size", "cross_attention_dim", "joint_attention_dim")
SAME_LATENTS = ("latent_channels", "scaling_factor", "shift_factor")


class CheckpointError(ValueError):
    """A device's own checkpoint that does not go with the edge's model."""


def part_of(model: dict[str, Any], known: dict[str, str]) -> tuple[str, str]:
    """(class, name) of the component of an edge's model whose class is one of `known`; else DeviceCannot."""
    for made, name in known.items():
        if model.get("classes", {}).get(name) == made:
            return made, name
    raise DeviceCannot(f"the edge's model has none of {', '.join(known)} that this device can run")


def free_bytes(device: str) -> int:
    """Memory that is free on `device` now."""
    if torch.device(device).type == "cuda":
        return int(torch.cuda.mem_get_info(device)[0])
    return int(psutil.virtual_memory().available)


class DeviceModel:
    """The denoiser and decoder of one model on this device, each loaded when first needed.

    `checkpoint` is a diffusers folder whose denoiser the device uses in place of the edge's: a smaller one
    over the same latents. CheckpointError when it has none.
    """

    def __init__(self, cache: Path, *, device: str, dtype: str, checkpoint: Path | None = None) -> None:
        self.cache, self.device, self.dtype, self.checkpoint = cache, device, dtype, checkpoint
        self.fetched_bytes = 0
        self._digest = ""
        self._loaded: dict[str, Any] = {}
        if checkpoint is not None and not (checkpoint / "model_index.json").is_file():
            raise CheckpointError(
                f"device_checkpoint={checkpoint} has no model_index.json; give a diffusers pipeline folder"
            )

    @property
    def own_name(self) -> str:
        """The name of the device's own checkpoint, or '' where it uses the edge's model."""
        return self.checkpoint.name if self.checkpoint is not None else ""

    def denoiser(self, edge: str, model: dict[str, Any]) -> Steps[Any]:
        """The network that predicts noise, ready on the device.

        DeviceCannot when it cannot be held here; FetchError when `edge` does not send it.
        """
        made, name = part_of(model, DENOISERS)
        if self.checkpoint is None:
            return (yield from self._component(edge, model, made, name))
        self._forget_others(model)
        if name not in self._loaded:
            yield from self._check_same_latents(edge, model, name)
            folder = self.checkpoint / name
            self._loaded[name] = yield Work(lambda: self._load(folder, made))
        return self._loaded[name]

    def steered(self, edge: str, model: dict[str, Any], kind: str) -> Steps[Any]:
        """The denoiser with the edge's ControlNet for this `kind` of condition beside it.

        DeviceCannot when it cannot be held here; FetchError when `edge` does not send it.
        """
        denoiser = yield from self.denoiser(edge, model)
        name = f"controlnet/{kind}"
        if name not in self._loaded:
            told = model["controls"][kind]
            listed = {"digest": told["digest"], "files": told["files"]}
            folder, fetched = yield from fetch_component(edge, listed, "controlnet", self.cache)
            self.fetched_bytes += fetched
            place = ControlNetFolder(str(folder), kind)

            def load() -> Any:
                try:
                    return load_controlnet(place, denoiser, device=self.device, dtype=self.dtype)
                except ModelError as error:
                    raise DeviceCannot(f"this device cannot use the ControlNet: {first_line(error)}") from error

            self._loaded[name] = yield Work(load)
        return ControlledUNet(denoiser, self._loaded[name]).eval()

    def holds(self, model: dict[str, Any]) -> bool:
        """Whether the denoiser is here already, so that nothing large has to be fetched."""
        if self.checkpoint is not None:
            return True
        try:
            files = files_of(model, part_of(model, DENOISERS)[1])
        except (DeviceCannot, FetchError):
            return False
        return all((self.cache / "blobs" / file["sha256"]).is_file() for file in files)

    def decoder(self, edge: str, model: dict[str, Any]) -> Steps[Any]:
        """The autoencoder that turns final latents into a picture; DeviceCannot and FetchError as above."""
        made, name = part_of(model, DECODERS)
        return (yield from self._component(edge, model, made, name))

    def _component(self, edge: str, model: dict[str, Any], made: str, name: str) -> Steps[Any]:
        self._forget_others(model)
        if name not in self._loaded:
            try:
                folder, fetched = yield from fetch_component(edge, model, name, self.cache)
            except OSError as error:  # the disk is full, or not ours to write to
                raise DeviceCannot(f"this device cannot keep the model in {self.cache}: {error.strerror}") from error
            self.fetched_bytes += fetched
            self._loaded[name] = yield Work(lambda: self._load(folder, made))
        return self._loaded[name]

    def _forget_others(self, model: dict[str, Any]) -> None:
        if model["digest"] != self._digest:
            self._loaded.clear()
            self._digest = model["digest"]

    def _load(self, folder: Path, made: str) -> Any:
        need = sum(path.stat().st_size for path in folder.glob("*.safetensors"))
        free = free_bytes(self.device)
        if need > free:
            raise DeviceCannot(
                f"the {folder.name} needs {need / 1e6:,.0f} MB and {self.device} has {free / 1e6:,.0f} MB free"
            )
        try:
            with LOADING:
                network = getattr(diffusers, made).from_pretrained(
                    str(folder), torch_dtype=DTYPES[self.dtype], use_safetensors=True, local_files_only=True
                )
            return network.requires_grad_(False).eval().to(self.device)
        except (OSError, ValueError, RuntimeError, MemoryError) as error:
            raise DeviceCannot(f"this device cannot load the {folder.name}: {first_line(error)}") from error

    def _check_same_latents(self, edge: str, model: dict[str, Any], name: str) -> Steps[None]:
        assert self.checkpoint is not None
        for part, fields in ((name, SAME_DENOISER), ("vae", SAME_LATENTS)):
            mine = _config(self.checkpoint / part / "config.json")
            listed = [file for file in files_of(model, part) if file["name"] == "config.json"]
            if not listed:
                raise FetchError(f"the edge's model has no configuration of its {part}")
            path, count = yield from fetch_blob(edge, listed[0]["sha256"], listed[0]["size_bytes"], self.cache)
            self.fetched_bytes += count
            theirs = _config(path)
            for field in fields:
                if mine.get(field) != theirs.get(field):
                    raise CheckpointError(
                        f"device_checkpoint={self.checkpoint}: its {part} has {field}={mine.get(field)}, the "
                        f"edge's {theirs.get(field)}; give a checkpoint of the same latent space"
                    )
        kind = _config(self.checkpoint / "scheduler" / "scheduler_config.json").get("prediction_type", "epsilon")
        theirs = model.get("scheduler", {}).get("config", {}).get("prediction_type", "epsilon")
        if kind != theirs:
            raise CheckpointError(
                f"device_checkpoint={self.checkpoint} predicts {kind}, the edge's model {theirs}; "
                "give a checkpoint that predicts the same"
            )


def first_line(error: BaseException) -> str:
    """The first line of an error's message, or its kind."""
    lines = str(error).strip().splitlines()
    return lines[0][:200] if lines else type(error).__name__


def _config(path: Path) -> dict[str, Any]:
    try:
        found = json.loads(path.read_text("utf-8"))
    except (OSError, ValueError) as error:
        raise CheckpointError(f"{path} cannot be read; give a complete diffusers folder") from error
    if not isinstance(found, dict):
        raise CheckpointError(f"{path} is no configuration; give a complete diffusers folder")
    return found
