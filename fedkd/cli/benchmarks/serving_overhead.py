"""What a split request costs over the unsplit pipeline, with what the network costs taken by itself."""

from __future__ import annotations

import io
import statistics
import time
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass, field, replace
from multiprocessing import get_context
from pathlib import Path
from typing import Any, Literal

import httpx
from PIL import Image

from fedkd.cli.benchmarks.serving_load import GUIDANCE, PROMPTS
from fedkd.cli.benchmarks.serving_options import ServingOptions

Order = Literal["device_first", "edge_first"]
ORDERS: tuple[Order, ...] = ("device_first", "edge_first")
WAYS: tuple[Any, ...] = ("unsplit", *ORDERS)
WARM_UP = 2


@dataclass
class Overhead:
    """Seconds of each picture, in the order in which they were drawn; `network` echoes the same bytes in two trips.

    `equal` counts split pictures that are the unsplit pipeline's, byte for byte.
    """

    unsplit: list[float] = field(default_factory=list)
    split: dict[str, list[float]] = field(default_factory=dict)
    network: dict[str, list[float]] = field(default_factory=dict)
    device: dict[str, list[float]] = field(default_factory=dict)
    edge: dict[str, list[float]] = field(default_factory=dict)
    bytes_moved: dict[str, int] = field(default_factory=dict)
    equal: int = 0
    compared: int = 0

    def share(self, order: str) -> float:
        """The fastest split picture, less its network, over the fastest unsplit one, less 1.

        What else a machine does can only add to a picture's seconds, and adds more than a split does.
        """
        return min(self._alone(order)) / min(self.unsplit) - 1

    def median_share(self, order: str) -> float:
        """The same of the medians."""
        return statistics.median(self._alone(order)) / statistics.median(self.unsplit) - 1

    def _alone(self, order: str) -> list[float]:
        return [split - network for split, network in zip(self.split[order], self.network[order], strict=True)]


def measure_real_size(options: ServingOptions, scratch: Path) -> Overhead:
    """`measure` with sd15 of `real_steps` steps at `real_resolution`, made in `scratch`, and an edge of its own.

    Without sharing, edge and device take 12 GB in float32: a pipeline each, and the device's denoiser.
    """
    from fedkd.cli.benchmarks.serving_model import random_sd15
    from fedkd.cli.benchmarks.serving_rival import rival_in_process
    from fedkd.models.source import SHIPPED
    from fedkd.serving.loopback import serve_in_process

    resolution, dtype, device = options.real_resolution, options.dtype, options.device
    # in a process of its own, which takes what it needed besides with it: memory is scarce at this size
    with ProcessPoolExecutor(1, mp_context=get_context("spawn")) as pool:
        sizes: dict[str, Any] = {"resolution": resolution, "dtype": dtype, "device": device}
        folder = str(pool.submit(random_sd15, scratch / "sd15", **sizes).result())
    serving: dict[str, Any] = {"device": device, "dtype": dtype, "threads": options.threads}
    smaller = replace(options, steps=options.real_steps, pictures=options.real_pictures)
    with (
        serve_in_process(folder, name="sd15", start_timeout_s=300.0, **serving) as edge,
        rival_in_process(str(SHIPPED / "tiny-sd"), **serving) as echoing,
    ):
        return measure(edge, echoing, folder, smaller, scratch / "sd15-device", warm_up=1)


def measure(
    edge: str, rival: str, folder: str, options: ServingOptions, cache: Path, *, warm_up: int = WARM_UP
) -> Overhead:
    """Draw pictures unsplit here and split in half in both orders, in turn, each to the bytes of a PNG.

    The device is this process: it has the edge's model, dtype, kind of device and number of threads.
    """
    import torch

    from fedkd.inference.allocator import keep_freed_memory
    from fedkd.models.pipeline import load_pipeline
    from fedkd.serving.device import EdgeClient

    keep_freed_memory()  # as `fedkd serve` and `fedkd generate` do; the unsplit pipeline gains by it as well
    torch.set_num_threads(options.threads)
    pipe: Any = load_pipeline(folder, device=options.device, dtype=options.dtype, scheduler="DDIMScheduler")
    found = Overhead()
    for figures in (found.split, found.network, found.device, found.edge):
        figures.update({order: [] for order in ORDERS})
    with (
        EdgeClient(edge, device=options.device, dtype=options.dtype, cache_dir=cache) as client,
        httpx.Client(base_url=rival, trust_env=False, timeout=60) as http,
    ):
        client.prepare()
        for place in range(-warm_up, options.pictures):
            seed = place + warm_up
            plan: dict[str, Any] = {"prompt": PROMPTS[place % len(PROMPTS)], "guidance_scale": GUIDANCE}
            plan |= {"num_inference_steps": options.steps}
            images: dict[str, Image.Image] = {}
            turn = seed % len(WAYS)  # so that none of the ways always follows the same other
            for way in (*WAYS[turn:], *WAYS[:turn]):
                began = time.perf_counter()
                if way not in ORDERS:
                    image = pipe(**plan, generator=torch.Generator("cpu").manual_seed(seed)).images[0]
                    image.save(io.BytesIO(), format="PNG")  # as an edge answers it
                    whole_s, images[way] = time.perf_counter() - began, image
                    if place >= 0:
                        found.unsplit.append(whole_s)
                    continue
                result = client.generate(
                    **plan, seed=seed, device_steps=options.steps // 2, order=way, with_latents=False
                )
                whole_s, images[way] = time.perf_counter() - began, result.image
                network_s = echoes(http, result.bytes_up, result.bytes_down)
                if place >= 0:
                    found.split[way].append(whole_s)
                    found.network[way].append(network_s)
                    found.device[way].append(result.device_seconds)
                    found.edge[way].append(result.edge_seconds)
                    found.bytes_moved[way] = result.bytes_up + result.bytes_down
            if place >= 0:
                found.compared += len(ORDERS)
                found.equal += sum(images[order].tobytes() == images["unsplit"].tobytes() for order in ORDERS)
    return found


def echoes(http: httpx.Client, up: int, down: int) -> float:
    """Seconds of two round trips that move as many bytes in both directions, and no more work than that."""
    began = time.perf_counter()
    for _ in range(2):
        answer = http.post("/echo", params={"size": down // 2}, content=bytes(up // 2))
        assert len(answer.content) == down // 2
    return time.perf_counter() - began
