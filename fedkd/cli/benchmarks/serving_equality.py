"""`fedkd serve` in one process, `fedkd generate` in another, against `DiffusionPipeline` alone, byte for byte."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from fedkd.cli.benchmarks.served_edge import environment, served_edge

PROMPT, SEED, GUIDANCE, STEPS = "a red seven on a blue background", 5, 2.0, 6
ORDERS = ("device_first", "edge_first")
LIMIT_S = 1800.0
DPM = "DPMSolverMultistepScheduler"
SCHEDULERS: tuple[tuple[str, dict[str, Any]], ...] = (
    ("DDIMScheduler", {}),
    ("PNDMScheduler", {}),
    ("EulerDiscreteScheduler", {}),
    ("EulerAncestralDiscreteScheduler", {}),
    (DPM, {"solver_order": 1}),
    (DPM, {"solver_order": 2}),
    (DPM, {"solver_order": 3}),
    (DPM, {"algorithm_type": "sde-dpmsolver++"}),
    ("UniPCMultistepScheduler", {}),
    ("HeunDiscreteScheduler", {}),
    ("LCMScheduler", {}),
)
# Many pictures by one process: starting Python anew takes far longer than a picture. stdin: the command lines.
DEVICE = """
import json, sys
from fedkd.cli.main import app
for words in json.load(sys.stdin):
    try:
        app(words, standalone_mode=False)
    except SystemExit:
        pass
"""


@dataclass(frozen=True)
class Equality:
    """How many pictures were compared, which of them are not the pipeline's, and of which checkpoint they are."""

    compared: int
    unequal: list[str]
    checkpoint: str


@dataclass(frozen=True)
class Cut:
    """One picture to draw: the scheduler with its options, who begins, and how many of `total` steps are whose."""

    scheduler: str
    options: dict[str, Any]
    order: str
    device_steps: int
    total: int

    def words(self, url: str, output: Path, cache: Path, threads: int) -> list[str]:
        """The command line that draws it."""
        return [
            *("generate", PROMPT, "--edge", url, "--output", str(output), "--cache", str(cache)),
            *("--device-steps", str(self.device_steps), "--order", self.order, "--threads", str(threads)),
            *("--steps", str(STEPS), "--seed", str(SEED), "--guidance", str(GUIDANCE), "--scheduler", self.scheduler),
            *(word for key, value in self.options.items() for word in ("--scheduler-option", f"{key}={value}")),
        ]

    def __str__(self) -> str:
        named = ", ".join([self.scheduler, *(f"{key}={value}" for key, value in self.options.items())])
        return f"{named}, {self.order}, {self.device_steps} of {self.total} steps on the device"


def cuts(scheduler: str, options: dict[str, Any], total: int) -> Iterator[Cut]:
    """Both orders, split after 0, 1, half, all but one and all of the `total` evaluations of the denoiser."""
    for order in ORDERS:
        for device_steps in sorted({0, 1, total // 2, total - 1, total}):
            yield Cut(scheduler, options, order, device_steps, total)


def every_split(scratch: Path, threads: int, schedulers: Sequence[tuple[str, dict[str, Any]]] = SCHEDULERS) -> Equality:
    """Draw each cut of each scheduler from what the quickstart has published, and compare the PNGs' pixels.

    Where no quickstart has run yet, tiny-sd is published in `scratch` as the quickstart's first version.
    LoopbackError when the edge does not start; a picture that does not come counts as unequal.
    """
    import torch

    torch.set_num_threads(threads)
    root, reference, folder = published(scratch)
    wanted: list[tuple[Cut, bytes]] = []
    for name, options in schedulers:
        picture, total = unsplit(folder, name, options)
        wanted += [(cut, picture) for cut in cuts(name, options, total)]
    outputs = [scratch / f"cut-{place}.png" for place in range(len(wanted))]
    serve = ["quickstart", "--checkpoint", reference, "--port", "0", "--threads", str(threads)]
    serve += [f"run.registry={root}", f"run.out={scratch / 'runs'}"]
    with served_edge(serve, scratch / "equality-edge.log") as (_, url):
        lines = [
            cut.words(url, output, scratch / "equality-device", threads)
            for (cut, _), output in zip(wanted, outputs, strict=True)
        ]
        with (scratch / "equality-device.log").open("w") as said:
            subprocess.run(
                [sys.executable, "-c", DEVICE], input=json.dumps(lines), text=True, stdout=said, stderr=said,
                env=environment(), timeout=LIMIT_S, check=True,
            )  # fmt: skip
    return Equality(len(wanted), differing(wanted, outputs), reference)


def differing(wanted: Sequence[tuple[Cut, bytes]], outputs: Sequence[Path]) -> list[str]:
    """The cuts whose PNG is not there, or has other pixels than the RGB bytes that were wanted."""
    from PIL import Image

    unequal = []
    for (cut, picture), output in zip(wanted, outputs, strict=True):
        if not output.is_file():
            unequal.append(f"{cut}: no picture")
            continue
        with Image.open(output) as found:
            if found.convert("RGB").tobytes() != picture:
                unequal.append(f"{cut}: another picture")
    return unequal


def published(scratch: Path) -> tuple[Path, str, Path]:
    """(registry, name:version, folder) of the latest that the quickstart has published, or of its base model."""
    from fedkd.checkpoints.registry import Registry
    from fedkd.models.source import SHIPPED
    from fedkd.recipe import load_recipe, registry_dir

    recipe = load_recipe("quickstart")
    name, registry = recipe.model.name, Registry(registry_dir(recipe))
    if name not in registry.names():
        registry = Registry(scratch / "published")
        registry.publish(SHIPPED / recipe.model.path, name=name)
    reference = registry.manifest(name).reference
    return registry.root, reference, registry.folder(reference)


def unsplit(folder: Path, scheduler: str, options: dict[str, Any]) -> tuple[bytes, int]:
    """diffusers' own picture (RGB bytes) by its own loader, and the evaluations of the denoiser it took."""
    import diffusers
    import torch

    pipe: Any = diffusers.DiffusionPipeline.from_pretrained(str(folder), local_files_only=True)
    pipe.set_progress_bar_config(disable=True)
    pipe.scheduler = getattr(diffusers, scheduler).from_config(pipe.scheduler.config, **options)
    generator = torch.Generator("cpu").manual_seed(SEED)
    image = pipe(PROMPT, num_inference_steps=STEPS, guidance_scale=GUIDANCE, generator=generator).images[0]
    return image.convert("RGB").tobytes(), len(pipe.scheduler.timesteps)
