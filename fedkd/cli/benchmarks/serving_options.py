"""What `key=value` words after a benchmark of serving change, with one line for each mistake."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, fields, replace
from typing import Any, TypeVar

from fedkd.recipe import RecipeError, nearest

Options = TypeVar("Options")
MODELS = ("tiny-sd", "sd15")
DTYPES = ("float32", "float16", "bfloat16")


@dataclass(frozen=True)
class ServingOptions:
    """`requests` are sent for each level of concurrency and side, `repeats` times in turn.

    `model` sd15 has Stable Diffusion 1.5's sizes and random weights, at `resolution` pixels. Edge and rival get
    `threads` torch threads each. `steps` is the mean of the mixed numbers of steps (a half to 1.5 times that);
    `pictures` drawn with a split are timed against as many unsplit ones. Beside tiny-sd, so are `real_pictures` (0:
    none) of `real_steps` steps with sd15 at `real_resolution` pixels. `equality` (0 or 1) says whether every
    scheduler is compared in both orders at every split point.
    """

    model: str = "tiny-sd"
    resolution: int = 512
    device: str = "cpu"
    dtype: str = "float32"
    threads: int = 1
    steps: int = 8
    requests: int = 160
    repeats: int = 3
    pictures: int = 15
    max_rows: int = 0
    real_resolution: int = 128
    real_steps: int = 4
    real_pictures: int = 9
    equality: int = 1

    def __post_init__(self) -> None:
        _choice("model", self.model, MODELS)
        _choice("dtype", self.dtype, DTYPES)
        _range("resolution", self.resolution, 64, 2048)
        _range("threads", self.threads, 1, 1024)
        _range("steps", self.steps, 2, 600)
        _range("requests", self.requests, 1, 1_000_000)
        _range("repeats", self.repeats, 1, 1000)
        _range("pictures", self.pictures, 1, 10_000)
        _range("max_rows", self.max_rows, 0, 4096)
        _range("real_resolution", self.real_resolution, 64, 2048)
        _range("real_steps", self.real_steps, 2, 600)
        _range("real_pictures", self.real_pictures, 0, 10_000)
        _range("equality", self.equality, 0, 1)
        for name in ("resolution", "real_resolution"):
            if getattr(self, name) % 64:
                raise RecipeError(f"{name}={getattr(self, name)} is no multiple of 64; give 256 or 512, say")


@dataclass(frozen=True)
class SoakOptions:
    """`minutes` of traffic with `swaps` new versions, then `junk` requests that make no sense.

    `users` draw at once; `vanish` of the devices go away in mid-session and `wrong` of the requests carry a wrong
    token (shares). Sessions live `lifetime_s`.
    """

    minutes: float = 30.0
    swaps: int = 20
    junk: int = 10_000
    users: int = 6
    vanish: float = 0.1
    wrong: float = 0.05
    lifetime_s: float = 20.0
    seed: int = 0

    def __post_init__(self) -> None:
        _range("minutes", self.minutes, 0, 10_000)
        _range("swaps", self.swaps, 0, 1000)
        _range("junk", self.junk, 0, 10_000_000)
        _range("users", self.users, 1, 256)
        _range("vanish", self.vanish, 0, 1)
        _range("wrong", self.wrong, 0, 1)
        _range("lifetime_s", self.lifetime_s, 2, 3600)
        _range("seed", self.seed, 0, 2**31)
        if not self.minutes and not self.junk:
            raise RecipeError("minutes=0 and junk=0 leave nothing to do; give one of them")


def read_options(overrides: Sequence[str], defaults: Options) -> Options:
    """`defaults` with the `key=value` words of `overrides`; RecipeError names what is not known or out of range."""
    known = {each.name: type(getattr(defaults, each.name)) for each in fields(defaults)}  # type: ignore[arg-type]
    given: dict[str, Any] = {}
    for override in overrides:
        key, separator, value = override.partition("=")
        if key not in known or not separator:
            raise RecipeError(f"'{override}' is nothing that this benchmark knows; {nearest(key, sorted(known))}")
        try:
            given[key] = known[key](value)
        except ValueError:
            raise RecipeError(f"{key}={value} is no {known[key].__name__}; give a number") from None
    return replace(defaults, **given)  # type: ignore[type-var]


def _choice(name: str, value: str, known: Sequence[str]) -> None:
    if value not in known:
        raise RecipeError(f"{name}={value} is not known; give {' or '.join(known)}")


def _range(name: str, value: float, low: float, high: float) -> None:
    if not low <= value <= high:
        raise RecipeError(f"{name}={value} is out of range; give {low:g} to {high:g}")
