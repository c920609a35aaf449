"""What a caller of the step engine holds, and how work ends that does not end well."""

from __future__ import annotations

import time
from collections.abc import Callable, Hashable
from concurrent.futures import Future
from dataclasses import dataclass, field
from typing import Any

from fedkd.inference.capacity import Capacity
from fedkd.inference.denoiser import Job
from fedkd.inference.row_batch import form_of


class Busy(RuntimeError):
    """The engine has enough to do; try again in `retry_after_s` seconds."""

    def __init__(self, message: str, retry_after_s: float) -> None:
        super().__init__(message)
        self.retry_after_s = retry_after_s


class Cancelled(RuntimeError):
    """The ticket was cancelled, or the engine closed, before the job came to its end."""


class Expired(RuntimeError):
    """The ticket's deadline passed before the job came to its end."""


class JobFailed(ValueError):
    """The job itself cannot go on: its scheduler state, shapes or adapter do not work; others are untouched."""


class NotFinite(JobFailed):
    """The job's latents became infinite or NaN."""


@dataclass(eq=False, repr=False)
class ServedModel:
    """A denoiser of the engine, what it can bear, and whether it is on its way out."""

    key: str
    denoiser: Any
    capacity: Capacity
    leaving: Future[None] | None = None


@dataclass(eq=False, repr=False)
class Ticket:
    """A job handed to the engine.

    `future` answers the job, the same object, at step `until`; or raises Cancelled, Expired, JobFailed, or
    whatever `on_step` raised. Cancelling the future itself (as asyncio does to one it waits for) cancels the
    ticket too. `lone` is true as long as every forward was the job's own, so that the result is bitwise that of
    `denoise`. `deadline` is on time.monotonic()'s clock.
    """

    job: Job
    model: ServedModel
    until: int
    owner: str = ""
    adapter: str = ""
    exact: bool = False
    deadline: float = float("inf")
    on_step: Callable[[Job], None] | None = None
    future: Future[Job] = field(default_factory=Future)
    lone: bool = True
    turn: int = -1
    _cancelled: bool = False
    _wake: Callable[[], None] = lambda: None

    def __post_init__(self) -> None:
        latents = self.job.latents
        self.place: Hashable = (id(self.model), form_of(self.job))
        self.rows = self.job.rows
        self.work = float(self.rows * latents.numel())

    def cancel(self) -> None:
        """Stop before the next step, which may be under way; `future` then raises Cancelled.

        The job is left whole at the step it reached, and can still be handed off. No effect after the end.
        """
        self._cancelled = True
        self._wake()

    @property
    def form(self) -> Hashable:
        """The form of the job's rows (see `form_of`)."""
        return self.place[1]  # type: ignore[index]

    @property
    def remaining(self) -> int:
        """Steps still to do."""
        return self.until - self.job.step

    def ending(self) -> BaseException | None:
        """Why the job is not to go on, if it is not."""
        if self.future.cancelled() or self._cancelled:
            return Cancelled(f"cancelled at step {self.job.step} of {self.until}")
        if time.monotonic() >= self.deadline:
            return Expired(f"the deadline passed at step {self.job.step} of {self.until}")
        return None

    def end(self, error: BaseException | None = None) -> None:
        """Give the future its outcome, unless it has one."""
        if not self.future.done():
            # the caller may cancel the future between the two lines
            if not self.future.set_running_or_notify_cancel():
                return
            if error is None:
                self.future.set_result(self.job)
            else:
                self.future.set_exception(error)
