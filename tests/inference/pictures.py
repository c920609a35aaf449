"""Jobs for the step engine's tests, their lone runs to compare with, and a way to hold the engine still."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from concurrent.futures import Future
from contextlib import contextmanager
from functools import cache
from typing import Any

import torch

from fedkd.inference.denoiser import Job, denoise, encode, start
from fedkd.inference.step_engine import StepEngine
from fedkd.models.pipeline import denoiser_of

SCHEDULERS = (
    "DDIMScheduler",
    "EulerAncestralDiscreteScheduler",
    "DPMSolverMultistepScheduler",
    "HeunDiscreteScheduler",
    "PNDMScheduler",
    "UniPCMultistepScheduler",
)
WAIT_S = 60


def picture(
    pipe: Any,
    seed: int = 0,
    *,
    steps: int = 4,
    guidance: float = 2.0,
    scheduler: str | None = "DDIMScheduler",
    prompt: str = "a red seven",
) -> Job:
    """A job before its first step."""
    return start(
        pipe,
        encode(pipe, prompt, guidance),
        seed=seed,
        num_inference_steps=steps,
        guidance_scale=guidance,
        scheduler=scheduler,
    )


@cache
def _lone(pipe: Any, wanted: tuple[tuple[str, Any], ...]) -> torch.Tensor:
    return denoise(denoiser_of(pipe), picture(pipe, **dict(wanted))).latents


def lone(pipe: Any, **wanted: Any) -> torch.Tensor:
    """The latents (1, C, h, w) that `picture(pipe, **wanted)` comes to alone."""
    return _lone(pipe, tuple(sorted(wanted.items())))


def distance(found: torch.Tensor, expected: torch.Tensor) -> float:
    """How far apart, relative to the size of `expected`."""
    return float((found - expected).norm() / expected.norm())


def held(engine: StepEngine) -> tuple[threading.Event, Future[Any]]:
    """Keep the engine's thread busy until the event is set, so that what is handed in meanwhile waits together."""
    entered, go = threading.Event(), threading.Event()

    def hold() -> None:
        entered.set()
        assert go.wait(WAIT_S)

    future = engine.call(hold)
    assert entered.wait(WAIT_S)
    return go, future


@contextmanager
def together(engine: StepEngine) -> Iterator[None]:
    """What is submitted within is seen by the engine all at once."""
    go, future = held(engine)
    try:
        yield
    finally:
        go.set()
        future.result(WAIT_S)


@contextmanager
def running(denoiser: Any, key: str = "m", **options: Any) -> Iterator[StepEngine]:
    """An engine with one model."""
    engine = StepEngine(**options)
    try:
        engine.add_model(key, denoiser)
        yield engine
    finally:
        engine.close()
