"""What an edge knows of the other edges: what each last said of itself, how long ago, and what was sent there since."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Annotated

from pydantic import BaseModel, Field

LOST_AFTER, LOST_S = 3, 15.0  # questions without an answer, and seconds: what the peer has in hand is given up then
Figure = Annotated[float, Field(ge=0, le=1e30, allow_inf_nan=False)]
Name = Annotated[str, Field(max_length=200)]


class ModelReport(BaseModel):
    """A model as an edge serves it: a row of its denoiser in FLOP and, once measured, in seconds; its defaults."""

    digest: Annotated[str, Field(max_length=64)]
    created: int = 0
    row_flop: Figure
    row_s: Figure | None = None
    num_inference_steps: Annotated[int, Field(ge=1, le=10_000)]
    guidance_scale: Figure


class EdgeReport(BaseModel):
    """What an edge says of itself: report `sequence` of the running process `edge`.

    `left_s` has for each job in hand how long the edge would compute on it alone; of `requests` some may not have
    come that far. `arriving_flops_per_s` is the work that clients have brought it of late, wherever it was drawn.
    `call_s` is what encoding or decoding takes. `fetchable` are models that it does not serve now but could, with
    the seconds until it would.
    """

    edge: Annotated[str, Field(max_length=64)]
    sequence: int
    ready: bool
    call_s: Figure = 0.0
    left_s: Annotated[list[Figure], Field(max_length=100_000)]
    requests: Annotated[int, Field(ge=0)]
    arriving_flops_per_s: Figure = 0.0
    models: Annotated[dict[Name, ModelReport], Field(max_length=1000)]
    fetchable: Annotated[dict[Name, Figure], Field(max_length=1000)] = {}

    @property
    def backlog_s(self) -> float:
        """How long it would compute on all it has in hand."""
        return sum(self.left_s)

    @property
    def flops_per_s(self) -> float | None:
        """Its speed as its traffic has shown it, over the models that were measured; None before that."""
        measured = [model for model in self.models.values() if model.row_s]
        seconds = sum(model.row_s or 0.0 for model in measured)
        return sum(model.row_flop for model in measured) / seconds if seconds else None


@dataclass(frozen=True)
class Sent:
    """A request that is with a peer: its work, and when it was sent (seconds of the peer's clock)."""

    flop: float
    at: float


class Peer:
    """Another edge at `url`; used on the event loop alone.

    It is healthy from a report on, until a question or a request goes unanswered. `lost` is set when it has been
    silent so long that requests that are with it are better sent elsewhere.
    """

    def __init__(self, url: str, clock: Callable[[], float] = time.monotonic) -> None:
        self.url, self.clock = url, clock
        self.report: EdgeReport | None = None
        self.itself = False  # the address turned out to be this edge's own
        self.failures = 0
        self.lost = asyncio.Event()
        self._as_of = self._heard_at = 0.0
        self._sent: dict[object, Sent] = {}

    @property
    def healthy(self) -> bool:
        """Whether it may be sent requests."""
        return self.report is not None and self.report.ready and not self.failures and not self.itself

    @property
    def age_s(self) -> float:
        """How old its report is at most; infinite before the first."""
        return self.clock() - self._as_of if self.report is not None else float("inf")

    @property
    def requests(self) -> int:
        """Requests it has in hand, as reported, and those sent there since."""
        return (self.report.requests if self.report else 0) + sum(sent.at > self._as_of for sent in self._sent.values())

    @property
    def unreported_flops(self) -> list[float]:
        """The work of each request that this edge sent there and that its report cannot know of."""
        return [sent.flop for sent in self._sent.values() if sent.at > self._as_of]

    def heard(self, report: EdgeReport, asked_at: float) -> None:
        """It answered, to a question sent at `asked_at`; a report that was overtaken by a newer one changes nothing."""
        self.failures, self._heard_at = 0, self.clock()
        self.lost.clear()
        before = self.report
        if before is not None and before.edge == report.edge and before.sequence >= report.sequence:
            return
        self.report, self._as_of = report, asked_at

    def doubt(self) -> None:
        """A request that was with it broke off: nothing more goes there until it has answered a question."""
        self.failures = max(1, self.failures)

    def missed(self) -> None:
        """It did not answer a question."""
        self.failures += 1
        if self.failures >= LOST_AFTER and self.clock() - self._heard_at >= LOST_S:
            self.lost.set()

    @contextmanager
    def holding(self, flop: float) -> Iterator[None]:
        """Count a request of so much work as being with this peer."""
        request = object()
        self._sent[request] = Sent(flop, self.clock())
        try:
            yield
        finally:
            del self._sent[request]
