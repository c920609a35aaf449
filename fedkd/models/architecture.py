"""What a diffusers folder is built of, read from its configurations alone, and what a picture of it costs."""

from __future__ import annotations

import hashlib
import json
import os
from pathlib import Path
from types import SimpleNamespace
from typing import Any

from fedkd.models.flops import model_cost
from fedkd.models.source import ModelError, resolve_model

Configurations = dict[str, tuple[str, dict[str, Any]]]
DENOISERS = ("unet", "transformer")
COUNTING = 2  # goes up when what is counted changes, so that no old count is taken from the cache


def configurations(source: str) -> Configurations:
    """{component: (class, configuration)} of the denoiser, the VAE and the text encoders.

    `source` is a shipped name, a diffusers folder or a hub id, of which only the configurations are fetched.
    Raises ModelError when there is no such model, or one of its parts has no configuration.
    """
    folder = Path(resolve_model(source))
    if not folder.is_dir():
        folder = _fetched(str(folder))
    try:
        index = json.loads((folder / "model_index.json").read_text("utf-8"))
        found = {}
        for name, made in index.items():
            if isinstance(made, list) and made[1] and (name in (*DENOISERS, "vae") or name.startswith("text_encoder")):
                found[name] = str(made[1]), json.loads((folder / name / "config.json").read_text("utf-8"))
    except (OSError, ValueError, LookupError) as error:
        raise ModelError(f"{source}: {error}; give a diffusers folder with a config.json for each component") from error
    return found


def without_weights(configs: Configurations) -> Any:
    """The components on the meta device, as `model_cost` reads them; ModelError for classes that nobody knows."""
    import diffusers
    import torch
    import transformers

    parts: dict[str, Any] = {}
    try:
        with torch.device("meta"):
            for name, (made, config) in configs.items():
                if name.startswith("text_encoder"):
                    kind: Any = getattr(transformers, made)
                    parts[name] = kind(kind.config_class(**config))
                else:
                    parts[name] = getattr(diffusers, made).from_config(config)
        tokens = int(parts["text_encoder"].config.max_position_embeddings)
        scale = 2 ** (len(parts["vae"].config.block_out_channels) - 1)
    except (AttributeError, KeyError, RuntimeError, TypeError, ValueError) as error:
        raise ModelError(f"this model's costs cannot be counted: {error}; give one that diffusers knows") from error
    tokenizer = SimpleNamespace(model_max_length=tokens)
    return SimpleNamespace(**parts, components=parts, tokenizer=tokenizer, vae_scale_factor=scale)


def counted_cost(source: str, resolution: int | None = None, value_bytes: int = 2) -> dict[str, int]:
    """The numbers of `fedkd.planning.system.ModelCost`, counted once for each architecture and then remembered.

    `resolution` in pixels (None: the model's own); `value_bytes` is the size of one number, 2 for fp16.
    """
    configs = configurations(source)
    names = ("_name_or_path", "_diffusers_version", "transformers_version", "torch_dtype", "dtype")
    plain = {
        name: [made, {key: value for key, value in config.items() if key not in names}]
        for name, (made, config) in configs.items()
    }
    said = json.dumps([COUNTING, plain, resolution, value_bytes], sort_keys=True, default=str)
    path = _memory() / f"{hashlib.sha256(said.encode()).hexdigest()[:32]}.json"
    try:
        return {str(name): int(value) for name, value in json.loads(path.read_text("utf-8")).items()}
    except (OSError, ValueError, AttributeError):
        pass  # not counted yet, or not readable: count
    pipe = without_weights(configs)
    if resolution is None:
        side = next(getattr(pipe, name) for name in DENOISERS if name in configs).config.sample_size
        resolution = (side if isinstance(side, int) else min(side)) * pipe.vae_scale_factor
    found = model_cost(pipe, resolution, value_bytes)
    _remember(path, found)
    return found


def _memory() -> Path:
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "fedkd" / "costs"


def _remember(path: Path, found: dict[str, int]) -> None:
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        part = path.with_name(f"{path.name}.{os.getpid()}.part")
        part.write_text(json.dumps(found), "utf-8")
        os.replace(part, path)
    except OSError:
        return  # a cache that cannot be written costs time, no more


def _fetched(name: str) -> Path:
    from huggingface_hub import snapshot_download

    try:
        return Path(snapshot_download(name, allow_patterns=["model_index.json", "*/config.json"]))
    except (OSError, ValueError) as error:
        raise ModelError(f"cannot fetch the configurations of {name}: {error}") from error
