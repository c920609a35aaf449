"""Load on a server of pictures: so many clients at once, each asking for its next picture when it has one."""

from __future__ import annotations

import asyncio
import base64
import io
import statistics
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import httpx
import numpy as np
from httpx_sse import aconnect_sse
from PIL import Image

PATH = "/v1/images/generations"
PROMPTS = ("a red seven on a blue background", "a white zero on a black background", "a green four")
PARTIAL_IMAGES = 3
GUIDANCE = 2.0
TIMEOUT_S = 600.0


class LoadError(ValueError):
    """A server under load answered something else than a picture."""


@dataclass(frozen=True)
class Seen:
    """What became of one request: seconds until the picture, and until the first preview where one was streamed."""

    body: dict[str, Any]
    seconds: float
    first_preview_s: float
    data: str  # the picture, PNG in base64

    @property
    def key(self) -> tuple[str, int, int]:
        """What makes the picture what it is."""
        return self.body["prompt"], self.body["seed"], self.body["num_inference_steps"]


@dataclass(frozen=True)
class Measured:
    """One load: all requests, and the seconds from the first to the last picture."""

    seen: list[Seen]
    wall_s: float

    @property
    def pictures_per_s(self) -> float:
        """Throughput."""
        return len(self.seen) / self.wall_s

    def percentile_s(self, share: float) -> float:
        """Latency of that share of the requests."""
        return float(np.percentile([each.seconds for each in self.seen], 100 * share))

    @property
    def first_preview_s(self) -> float:
        """Mean seconds to the first preview."""
        return statistics.fmean(each.first_preview_s for each in self.seen)


def mixed_steps(mean: int) -> list[int]:
    """Numbers of steps around `mean`, a half to 1.5 times that: 4, 6, 8, 10, 12 for 8."""
    return [max(2, round(mean * share)) for share in (0.5, 0.75, 1.0, 1.25, 1.5)]


def bodies(count: int, mean_steps: int, *, stream: bool, seed: int = 0) -> list[dict[str, Any]]:
    """So many requests with mixed steps, the same ones for everybody."""
    steps = mixed_steps(mean_steps)
    dice = np.random.default_rng(seed)
    extra: dict[str, Any] = {"stream": True, "partial_images": PARTIAL_IMAGES} if stream else {}
    return [
        {
            "prompt": PROMPTS[place % len(PROMPTS)],
            "num_inference_steps": int(dice.choice(steps)),
            "guidance_scale": GUIDANCE,
            "seed": seed * 1_000_000 + place,
            **extra,
        }
        for place in range(count)
    ]


def load(url: str, wanted: Sequence[dict[str, Any]], concurrent: int, *, token: str = "") -> Measured:
    """Send `wanted` with `concurrent` requests in flight at any time; LoadError for an answer that is no picture."""
    try:
        return asyncio.run(_load(url, wanted, concurrent, token))
    except ExceptionGroup as errors:
        raise LoadError(str(errors.exceptions[0])) from errors


async def _load(url: str, wanted: Sequence[dict[str, Any]], concurrent: int, token: str) -> Measured:
    seen: list[Seen] = []
    left = iter(wanted)
    async with httpx.AsyncClient(
        base_url=url,
        timeout=TIMEOUT_S,
        trust_env=False,
        headers={"Authorization": f"Bearer {token}"} if token else {},
        limits=httpx.Limits(max_connections=concurrent, max_keepalive_connections=concurrent),
    ) as http:

        async def client(bodies_left: Iterator[dict[str, Any]]) -> None:
            for body in bodies_left:
                seen.append(await (_streamed(http, body) if body.get("stream") else _whole(http, body)))

        began = time.perf_counter()
        async with asyncio.TaskGroup() as group:
            for _ in range(concurrent):
                group.create_task(client(left))
        return Measured(seen, time.perf_counter() - began)


async def _whole(http: httpx.AsyncClient, body: dict[str, Any]) -> Seen:
    began = time.perf_counter()
    answer = await http.post(PATH, json=body)
    seconds = time.perf_counter() - began
    if answer.status_code != 200:
        raise LoadError(f"{answer.request.url} answered {answer.status_code}: {answer.text[:200]}")
    return Seen(body, seconds, float("nan"), answer.json()["data"][0]["b64_json"])


async def _streamed(http: httpx.AsyncClient, body: dict[str, Any]) -> Seen:
    began, first = time.perf_counter(), float("nan")
    async with aconnect_sse(http, "POST", PATH, json=body) as source:
        if source.response.status_code != 200:
            raise LoadError(f"{source.response.url} answered {source.response.status_code}")
        async for event in source.aiter_sse():
            if event.event == "image_generation.partial_image" and first != first:
                first = time.perf_counter() - began
            elif event.event == "image_generation.completed":
                return Seen(body, time.perf_counter() - began, first, event.json()["b64_json"])
            elif event.event == "error":
                raise LoadError(f"{source.response.url} answered an error: {event.data[:200]}")
    raise LoadError(f"{source.response.url} ended without a picture")


def largest_difference(ours: Sequence[Seen], theirs: Sequence[Seen]) -> tuple[int, int]:
    """(largest difference of a pixel of 255 between the same requests' pictures, pictures that differ at all)."""
    others = {each.key: each for each in theirs}
    worst = differ = 0
    for each in ours:
        found = others[each.key]
        one, two = pixels(each.data), pixels(found.data)
        difference = int(np.abs(one - two).max())
        worst, differ = max(worst, difference), differ + (difference > 0)
    return worst, differ


def pixels(data: str) -> np.ndarray:
    """The pixels (H, W, 3) of a PNG in base64, as int16."""
    return np.asarray(Image.open(io.BytesIO(base64.b64decode(data))).convert("RGB")).astype(np.int16)
