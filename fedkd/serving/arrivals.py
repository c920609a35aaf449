"""Requests that an edge has taken and its engine has not seen yet: work that is about to wait."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar

SUBMITTED: ContextVar[Callable[[], None] | None] = ContextVar("SUBMITTED", default=None)


def submitted() -> None:
    """The engine counts this request's work from now on; nothing where nobody asked to be told."""
    told = SUBMITTED.get()
    if told is not None:
        told()


class Arrivals:
    """The FLOPs of requests on their way into the engine; used on the event loop alone."""

    def __init__(self) -> None:
        self._expected: dict[object, float] = {}

    @property
    def flops(self) -> list[float]:
        """The work of each request that is about to be submitted."""
        return list(self._expected.values())

    @contextmanager
    def expected(self, flop: float) -> Iterator[None]:
        """Count `flop` until what runs within submits it to the engine, or ends."""
        arrival = object()
        self._expected[arrival] = flop

        def seen() -> None:
            self._expected.pop(arrival, None)

        before = SUBMITTED.set(seen)
        try:
            yield
        finally:
            SUBMITTED.reset(before)
            self._expected.pop(arrival, None)
