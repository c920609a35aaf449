"""`fedkd generate`: a picture drawn by this device together with an edge."""

from __future__ import annotations

import os
from enum import Enum
from pathlib import Path
from typing import Annotated

import typer


class Order(str, Enum):  # noqa: UP042  (typer shows the values)
    """Who denoises first."""

    device_first = "device_first"
    edge_first = "edge_first"


class Side(str, Enum):  # noqa: UP042
    """Who decodes the final latents."""

    edge = "edge"
    device = "device"


def generate(
    prompt: Annotated[str, typer.Argument(help="What to draw.")],
    edge: Annotated[
        str, typer.Option(help="The edge's URL, as `fedkd serve` prints it.")
    ] = "http://127.0.0.1:8765",
    device_steps: Annotated[int, typer.Option(min=0, help="Denoising steps that this device does.")] = 0,
    order: Annotated[Order, typer.Option(help="Who goes first.")] = Order.device_first,
    steps: Annotated[
        int, typer.Option(min=0, max=1000, help="Denoising steps in all; 0 leaves it to the edge.")
    ] = 0,
    seed: Annotated[int, typer.Option(min=0, help="The same seed draws the same picture.")] = 0,
    guidance: Annotated[
        float | None, typer.Option(min=0.0, help="Guidance scale. Default: the edge's.")
    ] = None,
    scheduler: Annotated[str, typer.Option(help="A diffusers scheduler. Default: the edge's.")] = "",
    decode: Annotated[Side, typer.Option(help="Who turns the final latents into the picture.")] = Side.edge,
    output: Annotated[Path, typer.Option("--output", "-o", help="The PNG to write.")] = Path("picture.png"),
    token: Annotated[str, typer.Option(envvar="FEDKD_TOKEN", help="Bearer token of the edge.")] = "",
    cache: Annotated[
        Path | None, typer.Option(help="Folder that keeps the edge's model. Default: ~/.cache/fedkd.")
    ] = None,
    dtype: Annotated[str, typer.Option(help="float32, float16 or bfloat16: the edge's.")] = "float32",
    threads: Annotated[int, typer.Option(min=0, help="torch threads; 0 leaves the choice to torch.")] = 0,
) -> None:
    """Draw a picture by split inference: some denoising steps here, the rest at an edge.

    The device fetches the denoiser once and keeps it. The picture does not depend on who does which steps.

    Example, with `fedkd serve quickstart --checkpoint tiny-sd` running:

      fedkd generate "a red seven on a blue background" --device-steps 6 --order device_first -o seven.png
    """
    from fedkd.cli.console import console, guard, progress_bar

    with guard("no picture was written; run the same command again"):
        if not output.parent.is_dir():
            raise ValueError(f"--output {output}: no folder '{output.parent}'; make it first")
        with console.status("connecting"):
            import torch

            from fedkd.serving.device import EdgeClient

            if threads:
                torch.set_num_threads(threads)
        with EdgeClient(edge, token=token, cache_dir=cache, dtype=dtype) as client:
            if device_steps or decode is Side.device:
                with console.status("fetching the model"):
                    client.prepare(decode.value)
            with progress_bar("denoising") as progress:
                result = client.generate(
                    prompt,
                    num_inference_steps=steps or None,
                    device_steps=device_steps,
                    order=order.value,
                    seed=seed,
                    guidance_scale=guidance,
                    scheduler=scheduler or None,
                    decode=decode.value,
                    progress=progress,
                    with_latents=False,
                )
            part = output.with_name(f"{output.name}.part")
            result.image.save(part, format="PNG")
            os.replace(part, output)
            first, last = ("device", "edge") if result.order == "device_first" else ("edge", "device")
            counts = {"device": result.device_steps, "edge": result.edge_steps}
            exact = (
                ""
                if client.same_build()
                else " (builds or threads differ: equal to about 1e-6, not bit for bit)"
            )
            print(f"{output}: {result.image.width}x{result.image.height}, seed {seed}{exact}")
            print(
                f"steps    {first} {counts[first]}, then {last} {counts[last]}; "
                f"decoded by the {result.decoded_by} ({result.scheduler}, guidance {result.guidance_scale:g})"
            )
            fetched = (
                f"{client.fetched_bytes:,} of model fetched" if client.fetched_bytes else "no model fetched"
            )
            print(f"bytes    {result.bytes_up:,} up, {result.bytes_down:,} down; {fetched}")
            print(
                f"seconds  {result.total_seconds:.2f}: device {result.device_seconds:.2f}, "
                f"edge {result.edge_seconds:.2f}, network {result.network_s:.2f}"
            )
