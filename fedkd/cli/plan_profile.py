"""`fedkd plan profile`: measure what this machine takes for a step, and write it down as a profile."""

from __future__ import annotations

import os
import platform
import subprocess
from pathlib import Path
from typing import Annotated, Any

import typer


def profile(
    model: Annotated[
        str, typer.Argument(help="The model to measure on: a shipped name, a diffusers folder or a hub id.")
    ] = ("tiny-sd"),
    output: Annotated[Path, typer.Option("--output", "-o", help="The JSON file to write.")] = Path("profile.json"),
    name: Annotated[str, typer.Option(help="What to call this machine.")] = "this-machine",
    role: Annotated[str, typer.Option(help="device or edge.")] = "device",
    device: Annotated[str, typer.Option(help="torch's device: cpu, cuda, mps.")] = "cpu",
    dtype: Annotated[str, typer.Option(help="float32, float16 or bfloat16.")] = "float32",
    threads: Annotated[int, typer.Option(min=0, help="torch threads; 0 leaves the choice to torch.")] = 0,
    repeats: Annotated[int, typer.Option(min=1, help="Calls of each kind; their median counts.")] = 7,
    watts: Annotated[
        float | None, typer.Option(help="What it draws while it computes; CUDA's limit if not given.")
    ] = None,
    bandwidth: Annotated[float | None, typer.Option(help="Bit/s towards the other side.")] = None,
    distance: Annotated[float, typer.Option(help="Metres to the other side.")] = 0.0,
) -> None:
    """Measure this machine on a model and write a profile that `fedkd plan split` and the others take.

    Takes a denoising step with and without guidance, the text encoder, the decoder, and packing a message.

    Example: fedkd plan profile tiny-sd --name laptop --watts 15 --bandwidth 20e6 -o laptop.json

    Then: fedkd plan split --model tiny-sd --steps 12 --device laptop.json --edge rtx-4090-fp16
    """
    from fedkd.cli.console import console, fail, guard

    with guard("no profile was written; run the same command again"):
        if role not in ("device", "edge"):
            fail(f"--role {role} is not known; give device or edge")
        if not output.parent.is_dir():
            fail(f"--output {output}: no folder '{output.parent}'; make it first")
        _check(name, watts, bandwidth, distance)
        with console.status("measuring"):
            found = measured(model, name, role, device, dtype, threads, repeats, watts, bandwidth, distance)
        from fedkd.planning.profiles import save_profile

        save_profile(found, output)
        timings = found.device.timings
        assert timings is not None
        print(f"step     {1e3 * timings.step_s:.4g} ms, with guidance {1e3 * timings.guided_step_s:.4g} ms")
        print(f"prompt   {1e3 * timings.encode_s:.4g} ms; picture {1e3 * timings.decode_s:.4g} ms decoded")
        print(f"message  {1e3 * timings.message_s:.4g} ms to pack or unpack")
        print(f"speed    {found.device.flops_per_s / 1e9:.4g} GFLOP/s in steps of {model} ({dtype})")
        if not found.device.watts:
            print("watts    not given: plans count no energy here; give --watts")
        print(f"wrote {output}")


def _check(name: str, watts: float | None, bandwidth: float | None, distance: float) -> None:
    """PlanningError for figures that no machine or link has: measuring takes a while, so they are refused first."""
    from fedkd.planning.machines import Device, Link

    Device(name, flops_per_s=1.0, watts=0.0 if watts is None else watts)
    Link(1.0 if bandwidth is None else bandwidth, distance)


def measured(
    model: str,
    name: str,
    role: str,
    device: str,
    dtype: str,
    threads: int,
    repeats: int,
    watts: float | None,
    bandwidth: float | None,
    distance: float,
) -> Any:
    """The profile of this machine on `model`; ModelError or PlanningError for what cannot be measured."""
    import torch

    from fedkd.inference.timing import measured_seconds
    from fedkd.models.flops import model_cost
    from fedkd.models.pipeline import load_pipeline
    from fedkd.models.source import resolve_model
    from fedkd.planning.machines import Device, Link, PlanningError, Timings
    from fedkd.planning.profiles import Profile

    if threads:
        torch.set_num_threads(threads)
    try:
        torch.empty(0, device=device)
    except (RuntimeError, AssertionError, NotImplementedError) as error:
        raise PlanningError(
            f"--device {device} cannot be used here ({str(error).splitlines()[0]}); give cpu"
        ) from error
    link = None if bandwidth is None else Link(bandwidth, distance)
    pipe: Any = load_pipeline(resolve_model(model), device=device, dtype=dtype, scheduler="DDIMScheduler")
    side = (pipe.unet if hasattr(pipe, "unet") else pipe.transformer).config.sample_size
    flop = model_cost(pipe, (side if isinstance(side, int) else min(side)) * pipe.vae_scale_factor)["unet_flop"]
    timings = Timings(model=model, **measured_seconds(pipe, repeats=repeats))
    cuda = device.startswith("cuda")
    drawn, source = (watts, "given") if watts is not None else (_power_limit() if cuda else (0.0, "not known"))
    memory = torch.cuda.get_device_properties(device).total_memory if cuda else _memory_bytes()
    return Profile(
        device=Device(name, flop / timings.step_s, drawn, memory_bytes=float(memory), timings=timings),
        link=link,
        role=role,
        sources={
            "flops_per_s": f"measured: {flop:.4g} FLOP of a step of {model} in {timings.step_s:.4g} s",
            "watts": source,
            "memory_bytes": "the system's",
            "timings": f"measured: median of {repeats} calls, one picture at a time",
        },
        machine={
            "system": f"{platform.system()} {platform.machine()}",
            "device": torch.cuda.get_device_name(device) if cuda else device,
            "dtype": dtype,
            "threads": torch.get_num_threads(),
            "cores": os.cpu_count(),
            "torch": torch.__version__,
        },
    )


def _power_limit() -> tuple[float, str]:
    """The card's power limit (W) as its driver tells it; 0 where it does not."""
    asked = ["nvidia-smi", "--query-gpu=power.limit", "--format=csv,noheader,nounits"]
    try:
        said = subprocess.run(asked, capture_output=True, text=True, timeout=10, check=True).stdout
        return float(said.splitlines()[0]), "the card's power limit"
    except (OSError, subprocess.SubprocessError, ValueError, IndexError):
        return 0.0, "not known"


def _memory_bytes() -> int:
    try:
        return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    except (AttributeError, OSError, ValueError):
        from fedkd.planning.machines import PlanningError

        raise PlanningError("this system does not say how much memory it has; write the profile by hand") from None
