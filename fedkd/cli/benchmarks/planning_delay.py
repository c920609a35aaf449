"""Predicted against measured delay of split pictures over loopback with a bandwidth limiter, from measured profiles."""

from __future__ import annotations

import os
import random
import statistics
import tempfile
from collections.abc import Iterable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from fedkd.cli.benchmarks.request import Request
from fedkd.cli.benchmarks.result import Rows, Shown, Table, at_most
from fedkd.planning.machines import Device, Link, Timings
from fedkd.planning.system import ModelCost, cost

BOUND = 15.0  # percent
BANDWIDTHS_BPS = (0.25e6, 1e6, 4e6)
STEPS = 24
SPLITS = (("device_first", 6), ("device_first", 12), ("device_first", 18), ("edge_first", 6), ("edge_first", 18))
PROBES = (("device_first", 3), ("device_first", 21), ("edge_first", 12))
OPEN_BPS = 1e10  # as good as no limit
REPEATS, QUICK_REPEATS = 9, 3
PROMPT = "a red seven on a blue background"
MODEL = "tiny-sd"
MESSAGES = 3  # embedding and latents down, latents up, picture down
Cell = tuple[float, str, int]


@dataclass(frozen=True)
class Passed:
    """What one picture took: seconds, and the bytes on the wire with all headers."""

    seconds: float
    up_bytes: int
    down_bytes: int


def tables_and_shows(request: Request) -> tuple[list[Table], list[Shown]]:
    """Predicted and measured seconds of 5 splits at 3 bandwidths, and the largest error, at most 15%."""
    measured, seconds, guided = measure(QUICK_REPEATS if request.quick else REPEATS)
    device, edge, models = profiles(measured, seconds, guided)
    rows: Rows = {f"{order}, {steps} of {STEPS} on the device": {} for order, steps in SPLITS}
    worst = 0.0
    for bandwidth_bps in BANDWIDTHS_BPS:
        for order, steps in SPLITS:
            found = quarter(each.seconds for each in measured[bandwidth_bps, order, steps])
            predicted = cost(
                models[order],
                device,
                edge,
                Link(bandwidth_bps, 0.0),
                num_inference_steps=STEPS,
                device_steps=steps,
                guidance=guided,
                order=order,
                decode="edge",
            ).delay_s
            error = 100 * (predicted - found) / found
            worst = max(worst, abs(error))
            row, at = rows[f"{order}, {steps} of {STEPS} on the device"], f"{bandwidth_bps / 1e6:g} Mbit/s"
            row |= {f"{at}, predicted": [predicted], f"{at}, measured": [found], f"{at}, error %": [error]}
            request.say(f"{at}, {order}, {steps}: predicted {predicted:.3f} s, measured {found:.3f} s")
    columns = list(next(iter(rows.values())))
    table = Table("Delay of a split picture (s), predicted and measured", columns, rows, plain=True, digits=3)
    what = f"error of the predicted delay over {len(BANDWIDTHS_BPS)} bandwidths and {len(SPLITS)} splits (%)"
    return [table], [at_most(what, worst, BOUND)]


def notes(request: Request) -> list[str]:
    """How the profiles were measured."""
    load, cores = os.getloadavg()[0], os.cpu_count()
    return [
        f"planning_delay: load average {load:.1f} on {cores} cores, which only this benchmark should use",
        "planning_delay: the device's step, the text encoder and the decoder are timed alone; the edge's step, what "
        "a message costs beside its bits, and the bytes of messages come from three probes without a limit, at "
        "splits that are not predicted; of repeated measurements the lower quartile counts, for both",
    ]


def measure(repeats: int) -> tuple[dict[Cell, list[Passed]], dict[str, float], bool]:
    """All cells, in turn and `repeats` times; this machine's own seconds; and whether the edge guides."""
    import torch

    from fedkd.cli.benchmarks.limiter import limited
    from fedkd.inference.timing import measured_seconds
    from fedkd.models.pipeline import load_pipeline
    from fedkd.models.source import resolve_model
    from fedkd.serving.device import EdgeClient
    from fedkd.serving.loopback import serve_in_process

    threads, found = torch.get_num_threads(), dict[Cell, list[Passed]]()
    torch.set_num_threads(1)
    cells = [(OPEN_BPS, *probe) for probe in PROBES] + [(bps, *split) for bps in BANDWIDTHS_BPS for split in SPLITS]
    try:
        pipe = load_pipeline(resolve_model(MODEL), device="cpu", dtype="float32", scheduler="DDIMScheduler")
        timed = [measured_seconds(pipe)]
        with (
            tempfile.TemporaryDirectory() as folder,
            serve_in_process(MODEL, threads=1) as url,
            limited(url, OPEN_BPS) as limiter,
            EdgeClient(limiter.url, cache_dir=Path(folder)) as client,
        ):
            guided = float(client.model()["guidance_scale"]) > 1
            draw(client, limiter, (OPEN_BPS, *PROBES[0]))  # fetches the model, and warms both sides up
            for number in range(repeats):
                # in another order each time: what else the machine does must not fall on the same cells
                for cell in random.Random(number).sample(cells, len(cells)):
                    found.setdefault(cell, []).append(draw(client, limiter, cell))
                timed.append(measured_seconds(pipe, repeats=3))
    finally:
        torch.set_num_threads(threads)
    return found, {field: quarter(each[field] for each in timed) for field in timed[0]}, guided


def quarter(values: Iterable[float]) -> float:
    """The value that a quarter stays below: others on the machine only add to seconds, and not to the same ones."""
    found = sorted(values)
    return found[0] if len(found) < 3 else statistics.quantiles(found, n=4)[0]


def draw(client: Any, limiter: Any, cell: Cell) -> Passed:
    """One picture through the limiter."""
    bandwidth_bps, order, steps = cell
    limiter.reset(bandwidth_bps)
    result = client.generate(PROMPT, device_steps=steps, order=order, num_inference_steps=STEPS, seed=0)
    return Passed(result.total_seconds, limiter.up_bytes, limiter.down_bytes)


def profiles(
    measured: dict[Cell, list[Passed]], seconds: dict[str, float], guided: bool
) -> tuple[Device, Device, dict[str, ModelCost]]:
    """Device, edge, and the messages' sizes by order, from this machine's own seconds and the three probes."""

    def probed(order: str, steps: int) -> float:
        return quarter(each.seconds for each in measured[OPEN_BPS, order, steps])

    encode_s = seconds["encode_s"] * (2 if guided else 1)  # the empty prompt too
    timings = Timings(model=MODEL, **(seconds | {"encode_s": encode_s, "message_s": 0.0}))
    device = Device("device", flops_per_s=1.0, watts=0.0, timings=timings)
    # a step that moves from the edge to the device changes the delay by the difference of their times
    (order, few), (_, many), (other, half) = PROBES
    own_s = device.step_s(0.0, guided)
    step_s = own_s + (probed(order, few) - probed(order, many)) / (many - few)
    known_s = half * own_s + (STEPS - half) * step_s + encode_s + timings.decode_s
    rest_s = max(0.0, probed(other, half) - known_s) / MESSAGES
    edge_timings = replace(timings, step_s=step_s, guided_step_s=step_s, message_s=rest_s)
    models = {}
    for each, steps in PROBES:
        passed = measured[OPEN_BPS, each, steps][-1]
        # the sums of what goes up and down decide, however they are shared among the messages
        models[each] = ModelCost(0, 0, 0, 0, passed.up_bytes, 0, passed.down_bytes - passed.up_bytes, 0)
    return device, replace(device, name="edge", timings=edge_timings), models
