"""`fedkd bench serving`: an edge beside plain diffusers behind FastAPI, one by one: equality, overhead, load."""

from __future__ import annotations

import shutil
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING, Any

from fedkd.cli.benchmarks.request import Request
from fedkd.cli.benchmarks.result import Result, Table, at_least, at_most

if TYPE_CHECKING:
    from fedkd.cli.benchmarks.serving_equality import Equality
    from fedkd.cli.benchmarks.serving_load import Measured, Seen
    from fedkd.cli.benchmarks.serving_options import ServingOptions
    from fedkd.cli.benchmarks.serving_overhead import Overhead

EDGE, RIVAL = "edge", "diffusers, one at a time"
LEVELS = (1, 4, 16)
MOST = LEVELS[-1]
OVERHEAD_BOUND, PREVIEW_BOUND, CPU_BOUND, GPU_BOUND, PIXEL_BOUND = 3.0, 3.0, 1.0, 3.0, 1.0
QUICK = {"requests": 48, "repeats": 1, "pictures": 3, "real_pictures": 0, "equality": 0}
SD15_ON_CPU = {"requests": 16, "repeats": 1, "pictures": 3, "steps": 4, "resolution": 256}

Loads = dict[tuple[str, int], list["Measured"]]


def run(request: Request) -> Result:
    """Equality, overhead, load on both servers in turn, streams with previews, overhead at real size.

    See ServingOptions.
    """
    from fedkd.cli.benchmarks.serving_equality import every_split
    from fedkd.cli.benchmarks.serving_overhead import measure, measure_real_size
    from fedkd.cli.benchmarks.serving_rival import rival_in_process
    from fedkd.serving.loopback import serve_in_process

    options = wanted(request)
    scratch = Path(tempfile.mkdtemp(prefix="fedkd-serving-"))
    try:
        equality = every_split(scratch, options.threads) if options.equality else None
        if equality:
            request.say(f"{len(equality.unequal)} of {equality.compared} split pictures differ from the pipeline's")
        folder = model(options, scratch, request)
        serving: dict[str, Any] = {"device": options.device, "dtype": options.dtype, "threads": options.threads}
        edge_only: dict[str, Any] = {"max_rows": options.max_rows, "start_timeout_s": 300.0, "max_waiting": 4 * MOST}
        with (
            serve_in_process(folder, name=options.model, **serving, **edge_only) as edge,
            rival_in_process(folder, **serving) as rival,
        ):
            overheads = {options.model: measure(edge, rival, folder, options, scratch / "device")}
            tell(overheads, options.model, request)
            urls = {EDGE: edge, RIVAL: rival}
            loads = loaded(urls, options, LEVELS, stream=False, request=request)
            previews = loaded(urls, options, (MOST,), stream=True, request=request)
            facts = engine_facts(edge)
        if options.real_pictures and options.model != "sd15":
            request.say("making Stable Diffusion 1.5 with random weights")
            real = f"sd15 at {options.real_resolution} pixels, {options.real_steps} steps"
            overheads[real] = measure_real_size(options, scratch)
            tell(overheads, real, request)
    finally:
        shutil.rmtree(scratch, ignore_errors=True)
    result = Result(request.name, request.command, list(range(options.repeats)), [])
    result.tables = tables(overheads, loads, previews)
    worst, differ, compared = differences(loads)
    result.shows = shows(options, overheads, equality, loads, previews, worst)
    result.notes = [
        *(
            f"{name}: {each.equal} of {each.compared} split in half equal the unsplit pipeline's, byte for byte"
            for name, each in overheads.items()
        ),
        *overhead_notes(overheads),
        *equality_notes(equality),
        f"under load {differ} of {compared} pictures differ from the rival's, by {worst} of 255 at most",
        f"steps are mixed, {options.steps} in the mean; guidance takes two rows a picture; {facts}",
        f"{options.threads} torch threads each; clients run in a process of their own on the same machine",
    ]
    return result


def tell(overheads: dict[str, Overhead], name: str, request: Request) -> None:
    """One line of progress."""
    share = overheads[name].share("device_first")
    request.say(f"{name}: a split picture costs {100 * share:.1f}% over the unsplit pipeline")


def overhead_notes(overheads: dict[str, Overhead]) -> list[str]:
    """What a split costs, by the fastest and by the median picture; the promise is made for Stable Diffusion's size."""
    return [
        f"{name}: a split picture takes {100 * each.share(order):.1f}% longer than the unsplit pipeline's "
        f"({100 * each.median_share(order):.1f}% by medians), {order}"
        for name, each in overheads.items()
        for order in each.split
    ]


def equality_notes(equality: Equality | None) -> list[str]:
    """Of which checkpoint the compared pictures are, and which are wrong."""
    if equality is None:
        return ["schedulers and split points were not compared; give equality=1"]
    return [f"compared by `fedkd serve` and `fedkd generate` from {equality.checkpoint}", *equality.unequal[:10]]


def wanted(request: Request) -> ServingOptions:
    """The options: small ones for --quick and for sd15 on a CPU, then what the overrides say."""
    from fedkd.cli.benchmarks.serving_options import ServingOptions, read_options

    asked = read_options(request.overrides, ServingOptions())
    smaller = QUICK if request.quick else {}
    if asked.model == "sd15" and asked.device == "cpu":
        smaller = SD15_ON_CPU | smaller
    return read_options(request.overrides, ServingOptions(**smaller))  # type: ignore[arg-type]


def model(options: ServingOptions, scratch: Path, request: Request) -> str:
    """The folder of the model: the shipped tiny-sd, or sd15 made in `scratch`."""
    from fedkd.cli.benchmarks.serving_model import random_sd15
    from fedkd.models.source import SHIPPED

    if options.model == "tiny-sd":
        return str(SHIPPED / "tiny-sd")
    request.say("making Stable Diffusion 1.5 with random weights")
    made = random_sd15(scratch / "sd15", resolution=options.resolution, dtype=options.dtype, device=options.device)
    return str(made)


def loaded(
    urls: dict[str, str], options: ServingOptions, levels: tuple[int, ...], *, stream: bool, request: Request
) -> Loads:
    """Every level on both servers, in turn so that what else the machine does falls on both; warmed up before."""
    from fedkd.cli.benchmarks.serving_load import bodies, load

    found: Loads = {(side, level): [] for side in urls for level in levels}
    for level in levels:
        for url in urls.values():
            load(url, bodies(min(2 * level, options.requests), options.steps, stream=stream, seed=99), level)
    for repeat in range(options.repeats):
        asked = bodies(options.requests, options.steps, stream=stream, seed=repeat)
        for level in levels:
            for side in urls if repeat % 2 == 0 else reversed(urls):
                measured = load(urls[side], asked, level)
                found[side, level].append(measured)
                request.say(
                    f"{side}, {level} at once{', streamed' if stream else ''}: "
                    f"{measured.pictures_per_s:.2f} pictures/s, p50 {measured.percentile_s(0.5):.3f} s"
                )
    return found


def tables(overheads: dict[str, Overhead], loads: Loads, previews: Loads) -> list[Table]:
    """Seconds of a split picture; throughput and latency by requests at once; first previews."""
    columns = [str(level) for level in LEVELS]

    def table(title: str, value: Any, digits: int) -> Table:
        rows: dict[str, dict[str, list[float]]] = {side: {} for side in (EDGE, RIVAL)}
        for (side, level), measured in loads.items():
            rows[side][str(level)] = [value(each) for each in measured]
        return Table(title, columns, rows, plain=True, digits=digits, chart="lines", across="requests at once")

    one: dict[str, dict[str, list[float]]] = {}
    for name, each in overheads.items():
        one[f"{name}, unsplit pipeline"] = {"whole": each.unsplit}
        parts = {"whole": each.split, "device": each.device, "edge": each.edge, "network": each.network}
        for order in each.split:
            one[f"{name}, split in half, {order}"] = {part: parts[part][order] for part in parts}
    streamed: dict[str, dict[str, list[float]]] = {}
    for (side, _), measured in previews.items():
        streamed[side] = {
            "first preview": [each.first_preview_s for each in measured],
            "picture, mean": [sum(seen.seconds for seen in each.seen) / len(each.seen) for each in measured],
            "pictures/s": [each.pictures_per_s for each in measured],
        }
    return [
        Table("Seconds of one picture alone", ["whole", "device", "edge", "network"], one, plain=True, digits=4),
        table("Pictures a second, by requests at once", lambda each: each.pictures_per_s, 2),
        table("Latency p50 (s), by requests at once", lambda each: each.percentile_s(0.5), 3),
        table("Latency p99 (s), by requests at once", lambda each: each.percentile_s(0.99), 3),
        Table(
            f"Streams with three previews, {MOST} at once (s)",
            ["first preview", "picture, mean", "pictures/s"],
            streamed,
            plain=True,
            digits=3,
        ),
    ]


def shows(
    options: ServingOptions,
    overheads: dict[str, Overhead],
    equality: Equality | None,
    loads: Loads,
    previews: Loads,
    worst: int,
) -> list[Any]:
    """The promises: the same bytes, overhead, throughput (by kind of device), first previews, the same pictures."""
    found = []
    if equality is not None:
        what = f"pictures that are not DiffusionPipeline's, of {equality.compared} by scheduler, order and split point"
        found.append(at_most(what, len(equality.unequal), 0))
    found += [
        at_most(
            f"overhead of a split picture over the unsplit pipeline, without the network, {name}, {order} (%)",
            100 * overhead.share(order),
            OVERHEAD_BOUND,
        )
        for name, overhead in overheads.items()
        if name.startswith("sd15")  # of a denoiser that takes milliseconds a step, messages are a larger share: a note
        for order in overhead.split
    ]
    gpu = options.device.startswith("cuda") and options.model == "sd15"
    bound = GPU_BOUND if gpu else CPU_BOUND
    found.append(
        at_least(
            f"throughput at {MOST} requests at once, relative to one at a time", gained(loads, "pictures_per_s"), bound
        )
    )
    sooner = 1 / gained(previews, "first_preview_s")
    found.append(at_least(f"mean time to first preview at {MOST}, times sooner", sooner, PREVIEW_BOUND))
    if options.dtype == "float32":
        found.append(at_most("difference of a pixel from the rival's picture (of 255)", worst, PIXEL_BOUND))
    return found


def gained(loads: Loads, name: str) -> float:
    """What the edge has for each one of the rival's at 16 requests at once: the median over repeats."""
    import statistics

    return statistics.median(
        getattr(ours, name) / getattr(theirs, name)
        for ours, theirs in zip(loads[EDGE, MOST], loads[RIVAL, MOST], strict=True)
    )


def differences(loads: Loads) -> tuple[int, int, int]:
    """(largest difference of a pixel, pictures that differ at all, pictures compared) between edge and rival."""
    from fedkd.cli.benchmarks.serving_load import largest_difference

    ours: list[Seen] = []
    worst = differ = 0
    for level in LEVELS:
        for one, two in zip(loads[EDGE, level], loads[RIVAL, level], strict=True):
            found = largest_difference(one.seen, two.seen)
            worst, differ = max(worst, found[0]), differ + found[1]
            ours += one.seen
    return worst, differ, len(ours)


def engine_facts(edge: str) -> str:
    """What the edge's engine says of its forwards."""
    import httpx

    from fedkd.cli.benchmarks.soak_metrics import metrics_of

    found = metrics_of(httpx.get(f"{edge}/metrics", trust_env=False).text)
    return (
        f"the engine's forwards had {found.get('fedkd_engine_mean_rows', 0):.1f} rows in the mean, "
        f"{found.get('fedkd_engine_largest_rows', 0):.0f} at most"
    )
