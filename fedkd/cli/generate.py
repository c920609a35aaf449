"""`fedkd generate`: a picture drawn by this device together with an edge."""

from __future__ import annotations

import os
from contextlib import suppress
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


class ConditionKind(str, Enum):  # noqa: UP042
    """What is extracted from the source for the picture to follow."""

    canny = "canny"
    soft_edge = "soft-edge"
    depth = "depth"
    seg = "seg"


class Split(str, Enum):  # noqa: UP042
    """Who decides how many steps the device does."""

    auto = "auto"


class Wire(str, Enum):  # noqa: UP042
    """The forms in which latents travel."""

    exact = "exact"
    fp16 = "fp16"
    uint8 = "uint8"
    uint8_gray = "uint8_gray"
    uint8_protected = "uint8_protected"


def generate(
    prompt: Annotated[str, typer.Argument(help="What to draw.")],
    edge: Annotated[
        list[str] | None,
        typer.Option(
            help="The edge's URL, as `fedkd serve` prints it. Several of them: the next takes over when one "
            "is lost. Default: http://127.0.0.1:8765.",
            show_default=False,
        ),
    ] = None,
    device_steps: Annotated[int, typer.Option(min=0, help="Denoising steps that this device does.")] = 0,
    split: Annotated[Split | None, typer.Option(help="auto: the planner chooses the steps, and says why.")] = None,
    delay_limit: Annotated[
        float, typer.Option(min=0.0, help="With --split auto: the least energy within so many seconds; 0: no limit.")
    ] = 0.0,
    order: Annotated[
        Order | None,
        typer.Option(help="Who goes first. Default: device_first; with --split auto the planner's choice."),
    ] = None,
    steps: Annotated[int, typer.Option(min=0, max=1000, help="Denoising steps in all; 0 leaves it to the edge.")] = 0,
    seed: Annotated[int, typer.Option(min=0, help="The same seed draws the same picture.")] = 0,
    guidance: Annotated[float | None, typer.Option(min=0.0, help="Guidance scale. Default: the edge's.")] = None,
    scheduler: Annotated[str, typer.Option(help="A diffusers scheduler. Default: the edge's.")] = "",
    scheduler_option: Annotated[
        list[str] | None,
        typer.Option(metavar="KEY=VALUE", help="e.g. solver_order=3, use_karras_sigmas=true; may be given again."),
    ] = None,
    model: Annotated[str, typer.Option(help="Which of the edge's models. Default: its first.")] = "",
    condition: Annotated[
        ConditionKind | None,
        typer.Option(
            help="What the picture follows of --source: canny (thin edges), soft-edge, depth (a guess without a "
            "network) or seg (flat areas). It is extracted here; the source itself never leaves this device."
        ),
    ] = None,
    source: Annotated[
        Path | None,
        typer.Option(help="A PNG, JPEG, WebP, GIF or BMP picture for --condition: still, at most 64 megapixels."),
    ] = None,
    extracted: Annotated[
        bool, typer.Option("--extracted", help="--source is a condition already, e.g. of a depth network.")
    ] = False,
    condition_resolution: Annotated[
        float, typer.Option(help="Share of the picture's side at which the condition travels, 0 to 1.")
    ] = 1.0,
    condition_quality: Annotated[
        float, typer.Option(help="Its quality, 0 to 1; 1 is lossless. `fedkd plan condition` finds both.")
    ] = 1.0,
    condition_scale: Annotated[float, typer.Option(min=0.0, max=2.0, help="How strongly it steers.")] = 1.0,
    decode: Annotated[Side, typer.Option(help="Who turns the final latents into the picture.")] = Side.edge,
    wire: Annotated[Wire, typer.Option(help="How latents travel; all but exact lose precision.")] = Wire.exact,
    exact: Annotated[
        bool, typer.Option(help="Whether the edge computes this picture apart from others, bit for bit.")
    ] = True,
    output: Annotated[Path, typer.Option("--output", "-o", help="The PNG to write.")] = Path("picture.png"),
    token: Annotated[str, typer.Option(envvar="FEDKD_TOKEN", help="Bearer token of the edge.")] = "",
    cache: Annotated[
        Path | None, typer.Option(help="Folder that keeps the edge's model. Default: ~/.cache/fedkd.")
    ] = None,
    device: Annotated[str, typer.Option(help="Where this device computes: cpu, cuda, cuda:1…")] = "cpu",
    device_checkpoint: Annotated[
        Path | None,
        typer.Option(help="A diffusers folder whose smaller denoiser, of the same latents, does the device's steps."),
    ] = None,
    device_watts: Annotated[
        float, typer.Option(min=0.0, help="What this device draws; 0: the profile of the EUCI paper.")
    ] = 0.0,
    edge_watts: Annotated[float, typer.Option(min=0.0, help="The same of the edge.")] = 0.0,
    dtype: Annotated[str, typer.Option(help="float32, float16 or bfloat16: the edge's.")] = "float32",
    threads: Annotated[int, typer.Option(min=0, help="torch threads; 0 leaves the choice to torch.")] = 0,
) -> None:
    """Draw a picture by split inference: some denoising steps here, the rest at an edge.

    The device fetches the denoiser once and keeps it. The picture does not depend on who does which steps, nor
    on whether an edge is lost on the way. A device that cannot do its steps leaves them to the edge.

    Example, with `fedkd serve quickstart --checkpoint tiny-sd` running:

      fedkd generate "a red seven on a blue background" --device-steps 6 --order device_first -o seven.png

    Example, a picture with the outlines of another, at an edge that has a ControlNet (`fedkd serve --controlnet`):

      fedkd generate "a green seven on a white background" --condition canny --source photo.png
    """
    from fedkd.cli.console import console, guard, progress_bar

    with guard("no picture was written; run the same command again"):
        if not output.parent.is_dir():
            raise ValueError(f"--output {output}: no folder '{output.parent}'; make it first")
        if split and device_steps:
            raise ValueError(f"--device-steps {device_steps} and --split auto exclude each other; give one")
        if delay_limit and not split:
            raise ValueError(f"--delay-limit {delay_limit:g} is for --split auto; give both or neither")
        for name, value in (("resolution", condition_resolution), ("quality", condition_quality)):
            if not 0 < value <= 1:
                raise ValueError(f"--condition-{name} {value:g} must lie above 0 and be at most 1")
        if bool(condition) != bool(source):
            missing = "--source PICTURE" if condition else "--condition canny"
            raise ValueError(f"--condition and --source belong together; give {missing} too")
        if extracted and not condition:
            raise ValueError("--extracted is for --condition and --source; give all three, or leave it out")
        wanted = None
        if condition and source:
            from fedkd.data.source_image import read_source_file
            from fedkd.serving.split_request import Condition

            wanted = Condition(
                condition.value,
                read_source_file(source),
                extracted=extracted,
                resolution=condition_resolution,
                level=condition_quality,
                scale=condition_scale,
            )
        with console.status("connecting"):
            import torch

            from fedkd.cli.picture_text import account, how_equal, profile
            from fedkd.inference.allocator import keep_freed_memory
            from fedkd.planning.system import EUCI_DEVICE, EUCI_EDGE
            from fedkd.serving.device import DeviceCannot, EdgeClient

            keep_freed_memory()
            if threads:
                torch.set_num_threads(threads)
        client = EdgeClient(
            edges=edge or ["http://127.0.0.1:8765"],
            token=token,
            cache_dir=cache,
            device=device,
            dtype=dtype,
            device_checkpoint=device_checkpoint,
            device_profile=profile("EUCI device", EUCI_DEVICE, device_watts),
            edge_profile=profile("EUCI edge", EUCI_EDGE, edge_watts),
        )
        with client:
            if device_steps:
                # a device that cannot leaves its part to the edge, and the picture says so
                with console.status("fetching the model"), suppress(DeviceCannot):
                    client.prepare(decode.value, model or None)
            with progress_bar("denoising") as progress:
                result = client.generate(
                    prompt,
                    num_inference_steps=steps or None,
                    device_steps="auto" if split else device_steps,
                    order=order.value if order else None,
                    seed=seed,
                    guidance_scale=guidance,
                    scheduler=scheduler or None,
                    scheduler_options=parsed(scheduler_option or []) or None,
                    model=model or None,
                    decode=decode.value,
                    wire=wire.value,
                    exact=exact,
                    delay_limit_s=delay_limit or None,
                    condition=wanted,
                    progress=progress,
                    notice=lambda text: console.print(f"note: {text}", markup=False, soft_wrap=True),
                    with_latents=False,
                )
            part = output.with_name(f"{output.name}.part")
            result.image.save(part, format="PNG")
            os.replace(part, output)
            equal = how_equal(result)
            print(f"{output}: {result.image.width}x{result.image.height}, seed {seed}{equal}")
            print("\n".join(account(result, client.fetched_bytes)))
            if result.condition:
                print(f"follows  {source}: {result.condition}, {result.condition_bytes:,} bytes of the bytes up")


def parsed(options: list[str]) -> dict[str, object]:
    """{key: value} of KEY=VALUE texts, values read as JSON where they are; ValueError for another form."""
    import json

    found: dict[str, object] = {}
    for option in options:
        key, equals, value = option.partition("=")
        if not key or not equals:
            raise ValueError(f"--scheduler-option {option}: give KEY=VALUE, e.g. solver_order=3")
        try:
            found[key] = json.loads(value)
        except ValueError:
            found[key] = value
    return found
