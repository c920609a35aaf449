"""The edge under soak: the real `fedkd serve` in a process of its own, fed from a registry with ever newer versions."""

from __future__ import annotations

import json
import shutil
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

import httpx

from fedkd.cli.benchmarks.served_edge import served_edge
from fedkd.cli.benchmarks.soak_metrics import metrics_of

if TYPE_CHECKING:
    from fedkd.checkpoints.registry import Registry

NAME = "tiny-sd"
REFRESH_S = 1.0
CACHE_MB = 8  # some versions, so that the edge's cache has to let older ones go
MAX_SESSIONS = 512  # devices that vanish leave theirs behind until they expire
SHIFT = 0.15  # of the denoiser's last bias, from version to version: pictures of two versions differ visibly


@dataclass
class SoakEdge:
    """A running edge: where it is, who may ask it, and the versions it was given, oldest first, by model digest.

    `folders` has all versions there will be, in the order in which they come.
    """

    url: str
    process: subprocess.Popen[str]
    registry: Registry
    scratch: Path
    tokens: dict[str, str]
    versions: list[str] = field(default_factory=list)
    folders: dict[str, Path] = field(default_factory=dict)

    @property
    def alive(self) -> bool:
        """Whether the process that was started still runs."""
        return self.process.poll() is None

    def headers(self, holder: str) -> dict[str, str]:
        """The header that names a holder of a token."""
        return {"Authorization": f"Bearer {self.tokens[holder]}"}

    def metrics(self) -> dict[str, float]:
        """What the edge's /metrics says now."""
        answer = httpx.get(f"{self.url}/metrics", headers=self.headers("watcher"), trust_env=False, timeout=30)
        answer.raise_for_status()
        return metrics_of(answer.text)

    def publish(self) -> None:
        """Put the next version into the registry, where the edge will find it."""
        place = len(self.versions)
        digest, folder = list(self.folders.items())[place]
        self.versions.append(digest)  # known before the edge can serve it
        self.registry.publish(folder, name=NAME, parents=[f"{NAME}:v{place - 1}"] if place else [])


def varied(place: int, folder: Path) -> Path:
    """A copy of the shipped tiny-sd, its denoiser's last bias shifted `place` times, in `folder`."""
    import torch
    from safetensors.torch import load_file, save_file

    from fedkd.models.source import SHIPPED

    shutil.copytree(SHIPPED / "tiny-sd", folder)
    path = next((folder / "unet").glob("*.safetensors"))
    weights = load_file(path)
    turn = torch.tensor([1.0, -1.0, 1.0, -1.0]) * (1 if place % 2 else -1) * (1 + place // 2)
    bias = weights["conv_out.bias"]
    weights["conv_out.bias"] = bias + (SHIFT * turn * (place > 0)).to(bias.dtype)
    save_file(weights, path, metadata={"format": "pt"})
    return folder


def _digest(folder: Path) -> str:
    from fedkd.serving.components import component_files, model_digest

    return model_digest(component_files(folder))


@contextmanager
def soaked_edge(scratch: Path, holders: list[str], *, swaps: int, lifetime_s: float) -> Iterator[SoakEdge]:
    """`fedkd serve quickstart --from REGISTRY` with a token for each holder, and `swaps` versions to come.

    LoopbackError when it does not start.
    """
    from fedkd.checkpoints.registry import Registry

    tokens = {holder: f"token-of-{holder}-{place}" for place, holder in enumerate([*holders, "watcher"])}
    book = scratch / "tokens.yaml"
    book.write_text(json.dumps({"tokens": [{"name": name, "token": token} for name, token in tokens.items()]}))
    registry = Registry(scratch / "cloud")
    made = [varied(place, scratch / f"made-{place}") for place in range(swaps + 1)]
    edge = SoakEdge("", None, registry, scratch, tokens, folders={_digest(each): each for each in made})  # type: ignore[arg-type]
    edge.publish()
    words = [
        *("quickstart", "--from", str(registry.root), "--port", "0", "--tokens", str(book), "--threads", "1"),
        f"serving.refresh_s={REFRESH_S}",
        f"serving.session_lifetime_s={lifetime_s}",
        f"serving.max_sessions={MAX_SESSIONS}",
        f"serving.cache_mb={CACHE_MB}",
        f"serving.cache_dir={scratch / 'edge-cache'}",
        f"run.out={scratch / 'runs'}",
    ]
    with served_edge(words, scratch / "edge.log") as (edge.process, edge.url):
        yield edge
