"""What a device asks of edges, as plain facts: protocols yield these actions and do no I/O of their own."""

from __future__ import annotations

from collections.abc import Callable, Generator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeVar

Result = TypeVar("Result")
OnEvent = Callable[[str, str], None]


class EdgeError(ValueError):
    """The edge cannot be reached, refuses, or answers something else than was asked for."""


class EdgeLost(EdgeError):
    """This edge is of no use for the picture (any more); another may be."""


class EdgeUnreachable(EdgeLost):
    """No answer came: the edge is down, was killed while it worked, or the network is."""


@dataclass(frozen=True)
class Ask:
    """One HTTP request to `edge`, answered by an `Answer`; EdgeUnreachable comes in its place.

    Meanwhile the server-sent events of `watch` (a path) go to `on_event(kind, data)`. `in_passing` marks a
    request whose outcome does not matter: it gets two seconds, and status 0 where nothing came.
    """

    edge: str
    method: str
    path: str
    json: dict[str, Any] | None = None
    content: bytes | None = None
    params: Mapping[str, str] = field(default_factory=dict)
    watch: str = ""
    on_event: OnEvent | None = None
    in_passing: bool = False


@dataclass(frozen=True)
class Answer:
    """What came back: status, headers (names in small letters), body, and the bytes of the body sent."""

    status: int
    headers: Mapping[str, str]
    content: bytes
    sent_bytes: int


@dataclass(frozen=True)
class Download:
    """Fetch `path` of `edge` to the end of file `into`, or over it where the edge sends the whole.

    Answered by (status, bytes written); nothing is written unless the status is 200 or 206, and never more
    than `limit_bytes` + 1.
    """

    edge: str
    path: str
    headers: Mapping[str, str]
    into: Path
    limit_bytes: int


@dataclass(frozen=True)
class Work:
    """Something that takes time on this machine; answered by what `run()` returns or raises."""

    run: Callable[[], Any]


@dataclass(frozen=True)
class Pause:
    """Wait."""

    seconds: float


Action = Ask | Download | Work | Pause
Steps = Generator[Action, Any, Result]
"""A protocol without any I/O: it yields actions, is sent their outcomes, and returns its result."""


def unreachable(edge: str, error: Exception) -> EdgeUnreachable:
    """The one line for an edge that does not answer."""
    return EdgeUnreachable(f"cannot reach the edge at {edge} ({str(error).rstrip('.') or type(error).__name__})")
