"""Clients of the live dispatch benchmark: requests at given times to any of the edges, and what became of each."""

from __future__ import annotations

import asyncio
import hashlib
import time
from collections import Counter
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass, field

import httpx
import numpy as np

PATH = "/v1/images/generations"
NUMBER_HEADER = "X-Benchmark-Request"
ZIPF = 1.0
MIXED_STEPS = (1, 2, 3, 4, 5)
PATIENCE_S = 240.0  # after which a request counts as lost
AGAIN_S = 0.2


@dataclass(frozen=True)
class Wanted:
    """Request `number` (its picture's seed too), `at_s` after the start; edges are asked in the order `doors`."""

    number: int
    at_s: float
    model: str
    steps: int
    doors: tuple[int, ...]


@dataclass
class Fate:
    """What became of a request: the answers it got, by picture, after how many seconds, and from which edges."""

    wanted: Wanted
    answers: list[str] = field(default_factory=list)
    delay_s: float = float("nan")
    edge: str = ""
    sent: int = 0  # pictures that edges sent to this client, by their own count
    broken: int = 0  # connections that broke with the edge that was asked
    busy: int = 0  # times told to come again


def arrivals(count: int, rate_per_s: float, models: Sequence[str], edges: int, seed: int) -> list[Wanted]:
    """Poisson arrivals at any of the edges, models by Zipf's law in their order, steps mixed evenly."""
    rng = np.random.default_rng(seed)
    at_s = np.cumsum(rng.exponential(1 / rate_per_s, count))
    weight = 1 / np.arange(1, len(models) + 1) ** ZIPF
    model = rng.choice(len(models), count, p=weight / weight.sum())
    steps = rng.choice(MIXED_STEPS, count)
    return [
        Wanted(n, float(at_s[n]), models[model[n]], int(steps[n]), tuple(map(int, rng.permutation(edges))))
        for n in range(count)
    ]


def send_all(
    urls: Sequence[str], wanted: Sequence[Wanted], meanwhile: Callable[[], Awaitable[None]] | None = None
) -> list[Fate]:
    """Send each request at its time, whatever became of those before, and wait for all."""
    return asyncio.run(_send_all(urls, wanted, meanwhile))


async def _send_all(
    urls: Sequence[str], wanted: Sequence[Wanted], meanwhile: Callable[[], Awaitable[None]] | None
) -> list[Fate]:
    fates = [Fate(each) for each in wanted]
    limits = httpx.Limits(max_connections=None, max_keepalive_connections=100)
    async with httpx.AsyncClient(
        limits=limits, timeout=httpx.Timeout(PATIENCE_S, connect=5.0), trust_env=False
    ) as http:
        start = time.monotonic() + 0.5
        async with asyncio.TaskGroup() as group:
            if meanwhile is not None:
                group.create_task(_ignored(meanwhile()))
            for fate in fates:
                group.create_task(_one(http, urls, fate, start))
    return fates


async def _ignored(work: Awaitable[None]) -> None:
    await work


async def _one(http: httpx.AsyncClient, urls: Sequence[str], fate: Fate, start: float) -> None:
    asked, door = fate.wanted, 0
    due = start + asked.at_s
    await asyncio.sleep(max(0.0, due - time.monotonic()))
    body = {
        "prompt": "a seven",
        "model": asked.model,
        "num_inference_steps": asked.steps,
        "guidance_scale": 1.0,
        "seed": asked.number,
    }
    while time.monotonic() < due + PATIENCE_S:
        url = urls[asked.doors[door % len(urls)]]
        try:
            answer = await http.post(f"{url}{PATH}", json=body, headers={NUMBER_HEADER: str(asked.number)})
        except httpx.HTTPError:
            fate.broken += 1
            door += 1
            await asyncio.sleep(AGAIN_S if door % len(urls) == 0 else 0)
            continue
        if answer.status_code in (429, 503):
            fate.busy += 1
            await asyncio.sleep(float(answer.headers.get("Retry-After", 1)))
            continue
        if answer.status_code != 200:
            return
        said = answer.json()
        if said["seed"] == asked.number:
            fate.answers.append(hashlib.sha256(said["data"][0]["b64_json"].encode()).hexdigest())
        fate.delay_s = time.monotonic() - due
        fate.edge = answer.headers.get("X-Fedkd-Edge", "")
        return


def drawn_by(fates: Sequence[Fate], urls: Sequence[str]) -> list[float]:
    """The share of the requests that each edge drew."""
    counted = Counter(fate.edge for fate in fates)
    return [counted[url] / len(fates) for url in urls]
