"""What an edge must refuse while it serves on, and whether a pulled model draws the bits of the published one."""

from __future__ import annotations

import hashlib
import itertools
import pickle
import random
import shutil
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from fedkd.cli.benchmarks.registry_ledger import make_model, spoil

NAME = "trusted"
SIZES = {"unet": 30_000, "vae": 10_000}  # bytes of weights


def refusals(folder: Path) -> tuple[int, int]:
    """(bad versions offered to an edge, those that it refused while it served the version before).

    One is signed by another key, one has a pickle as unet/*.safetensors under a good signature, and one for each blob
    has a flipped bit in it.
    """
    from fedkd.checkpoints.cache import CheckpointCache
    from fedkd.checkpoints.manifest import CheckpointError
    from fedkd.checkpoints.registry import Registry
    from fedkd.checkpoints.signing import TrustPolicy, generate_keys, sign
    from fedkd.checkpoints.transfer import pull

    noise = np.random.default_rng(0)
    (ours, public), (theirs, _) = generate_keys(folder / "ours"), generate_keys(folder / "theirs")
    cloud = Registry(folder / "signed-cloud")
    cache = CheckpointCache(folder / "trusting-edge", policy=TrustPolicy(True, [public]))
    make_model(folder / "signed", noise, SIZES)
    served = cloud.publish(folder / "signed", name=NAME, sign=lambda made: sign(made, ours)).digest
    pull(NAME, str(cloud.root), cache)
    make_model(folder / "signed", noise, SIZES)
    other = Registry(folder / "other-cloud")
    other.publish(folder / "signed", name=NAME, sign=lambda made: sign(made, theirs))
    cloud.publish(folder / "signed", name=NAME, sign=lambda made: sign(made, ours))
    offered = refused = 0
    whole = (other.root, with_pickle(cloud.root, folder, ours))
    for root in itertools.chain(whole, with_flipped_bits(cloud.root, folder)):
        offered += 1
        shutil.rmtree(cache.root / "flights", ignore_errors=True)  # good blobs that an earlier attempt brought
        try:
            pull(NAME, str(root), cache)
        except CheckpointError:
            refused += cache.digest == served and cache.path().name == served
    pull(NAME, str(cloud.root), cache)  # the same version undamaged is taken: the edge does not refuse everything
    return offered, refused * (cache.digest != served)


def with_flipped_bits(cloud: Path, folder: Path) -> Iterator[Path]:
    """Copies of a registry, each with one bit flipped in another blob that only its latest version has."""
    from fedkd.checkpoints.registry import Registry

    registry, dice = Registry(cloud), random.Random(0)
    new = registry.manifest(NAME).blobs.items() - registry.manifest(f"{NAME}:v0").blobs.items()
    for sha256, size_bytes in sorted(new):
        root = folder / "flipped"
        shutil.copytree(cloud, root)
        spoil(Registry(root).blobs, sha256, dice.randrange(size_bytes), cut=False)
        yield root
        shutil.rmtree(root)


def with_pickle(cloud: Path, folder: Path, key: Path) -> Path:
    """A copy of a registry whose publisher does not look: a pickle named safetensors, digests and signature right."""
    from fedkd.checkpoints.manifest import MANIFEST_NAME
    from fedkd.checkpoints.registry import Registry
    from fedkd.checkpoints.signing import sign

    shutil.copytree(cloud, folder / "pickled")
    registry = Registry(folder / "pickled")
    manifest, version = registry.manifest(NAME), registry.folder(NAME)
    data = pickle.dumps({"w": list(range(1000))})
    entries = tuple(
        replace(entry, sha256=hashlib.sha256(data).hexdigest(), size=len(data)) if entry.path[:4] == "unet" else entry
        for entry in manifest.files
    )
    for entry in entries:
        if entry.path.startswith("unet"):
            registry.blobs.put_bytes(entry.sha256, data)
            (version / entry.path).unlink()
            (version / entry.path).write_bytes(data)
    (version / MANIFEST_NAME).unlink()
    (version / MANIFEST_NAME).write_text(replace(manifest, files=entries).to_json(), encoding="utf-8")
    sign(version, key)
    return registry.root


def pixels_apart(model: Path, folder: Path) -> int:
    """Pixel values that differ between what `model` draws and what its registry path and its pulled path draw."""
    from fedkd.checkpoints.registry import Registry
    from fedkd.checkpoints.transfer import pull

    here, there = Registry(folder / "drawn-cloud"), Registry(folder / "drawn-edge")
    here.publish(model, name=NAME)
    pull(NAME, str(here.root), there)
    wanted = drawn(model)
    return sum(int(np.count_nonzero(drawn(made.resolve(NAME)) != wanted)) for made in (here, there))


def drawn(folder: Path) -> Any:
    """A picture of plain diffusers, (H, W, 3) of float32 in [0, 1]."""
    import torch
    from diffusers import DiffusionPipeline

    pipe = DiffusionPipeline.from_pretrained(str(folder))
    pipe.set_progress_bar_config(disable=True)
    return pipe("a seven", num_inference_steps=3, generator=torch.Generator().manual_seed(0), output_type="np").images[
        0
    ]
