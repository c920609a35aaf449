"""The step engine: one thread owns the accelerator, and jobs join and leave its forwards between steps."""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable
from concurrent.futures import Future
from typing import Any, TypeVar

import torch

from fedkd.inference.calls import Call, CallQueue
from fedkd.inference.capacity import Capacity
from fedkd.inference.denoiser import Job, last_step, settle
from fedkd.inference.row_batch import finite, noise_of
from fedkd.inference.tickets import Busy, Cancelled, Expired, JobFailed, NotFinite, ServedModel, Ticket
from fedkd.inference.turns import Turns

__all__ = ["Busy", "Cancelled", "Expired", "JobFailed", "NotFinite", "StepEngine", "Ticket"]
log = logging.getLogger("fedkd.inference")
Result = TypeVar("Result")
SMOOTHING = 0.2  # of the running means of seconds
COUNTS = ("forwards", "rows", "steps", "jobs", "calls", "finished", "cancelled", "expired", "failed", "busy")


class StepEngine:
    """Denoises many jobs of several models at once, fair to their owners (see `Turns`).

    `max_rows` bounds the rows of a forward, those of guidance included; 0 learns it from the traffic and the
    free memory (see `Capacity`). `max_waiting` bounds what may wait besides what the latest round served: then
    `submit` and `call` raise Busy. `batch=False` computes every job alone. All methods may be called from any
    thread; `call`ed work, `on_step` and the futures' callbacks run on the engine's own.
    """

    def __init__(self, *, max_rows: int = 0, max_waiting: int = 64, batch: bool = True) -> None:
        if max_rows < 0 or max_waiting < 0:
            raise ValueError(f"max_rows={max_rows} and max_waiting={max_waiting} must be at least 0")
        self.max_rows, self.max_waiting, self.batch = max_rows, max_waiting, batch
        self._models: dict[str, ServedModel] = {}
        self._tickets: list[Ticket] = []  # oldest first
        self._served: list[Ticket] = []  # unfinished tickets of the latest round
        self._calls = CallQueue()
        self._calling = 0  # 1 while a call is made
        self._turns = Turns()
        self._counts = dict.fromkeys(COUNTS, 0)
        self._largest = 0
        self._row_s = self._forward_s = self._call_s = 0.0
        self._change = threading.Condition()
        self._closing_at = float("inf")
        self._thread = threading.Thread(target=self._run, name="fedkd-steps", daemon=True)
        self._thread.start()

    def add_model(self, key: str, denoiser: Any) -> None:
        """Serve `denoiser` (in eval mode, on its device) under `key`; ValueError when the key is in use."""
        capacity = Capacity(next(denoiser.parameters()).device, self.max_rows)
        with self._change:
            if key in self._models:
                raise ValueError(f"a model {key!r} is here already; remove it first")
            self._models[key] = ServedModel(key, denoiser, capacity)

    def remove_model(self, key: str) -> Future[None]:
        """Take no more jobs for `key`; the future is done when its last job has ended. ValueError if unknown."""
        with self._change:
            model = self._known(key)
            del self._models[key]
            gone: Future[None] = Future()
            model.leaving = gone
            idle = not any(ticket.model is model for ticket in self._tickets)
        if idle:
            gone.set_result(None)
        return gone

    def submit(
        self,
        key: str,
        job: Job,
        *,
        until: int | None = None,
        deadline_s: float | None = None,
        owner: str = "",
        adapter: str = "",
        exact: bool = False,
        on_step: Callable[[Job], None] | None = None,
        admitted: bool = False,
    ) -> Ticket:
        """Take `job` to step `until` (default: its end), in place, on the model `key`.

        `deadline_s` counts from now. `adapter` names one that the denoiser has loaded, '' the bare network.
        `exact` keeps the job's forwards to itself. `on_step(job)` is told of each step, and must not change the
        job. `admitted` is for the rest of a request that was let in before: never Busy. ValueError for an
        unknown model or adapter, a step out of range or conditions that are not the job's; Busy when full.
        """
        until = last_step(job, until)
        wrong = {name for name, tensor in (job.conditions or {}).items() if tensor.shape[0] != job.rows}
        if wrong and job.step < until:
            raise ValueError(f"conditions[{min(wrong)!r}] must have {job.rows} rows at this guidance")
        if deadline_s is not None and not deadline_s > 0:
            raise ValueError(f"deadline_s={deadline_s} must be more than 0")
        with self._change:
            model = self._known(key)
            adapters = getattr(model.denoiser, "peft_config", None) or {}
            if adapter and adapter not in adapters:
                raise ValueError(
                    f"no adapter {adapter!r} for the model {key!r}; loaded: {', '.join(sorted(adapters)) or 'none'}"
                )
            self._admit(admitted)
            ticket = Ticket(
                job, model, until, owner, adapter, exact or not self.batch, on_step=on_step, _wake=self._notify
            )
            if deadline_s is not None:
                ticket.deadline = time.monotonic() + deadline_s
            self._counts["jobs"] += 1
            if ticket.remaining:
                self._tickets.append(ticket)
                self._change.notify()
                return ticket
            self._counts["finished"] += 1
        ticket.end()
        return ticket

    def call(self, work: Callable[[], Result], *, owner: str = "", admitted: bool = False) -> Future[Result]:
        """Run `work` (encode, decode …) on the engine's thread between two forwards; Busy when full.

        Owners take turns; together, calls get as much time between two forwards as a forward takes, or one
        call's. A future cancelled in time is not run.
        """
        call = Call(work)
        with self._change:
            self._admit(admitted)
            self._calls.add(owner, call)
            self._change.notify()
        return call.future

    def stats(self) -> dict[str, float]:
        """Totals since the start, what is in hand now, and the running means of seconds."""
        with self._change:
            forwards = self._counts["forwards"]
            return {
                **self._counts,
                "running": len(self._served) + self._calling,
                "waiting": self._in_hand() - len(self._served) - self._calling,
                "models": len(self._models),
                "mean_rows": self._counts["rows"] / forwards if forwards else 0.0,
                "largest_rows": self._largest,
                "forward_s": self._forward_s,
                "row_s": self._row_s,
                "call_s": self._call_s,
            }

    def calibration(self, key: str) -> dict[str, dict[int, float]]:
        """Seconds of a row by rows of a forward (1, 2, 4 …) as measured on the traffic of `key`, by form."""
        with self._change:
            return self._known(key).capacity.calibration()

    def backlog(self) -> list[tuple[str, int]]:
        """For each job in hand its model's key, and its rows times steps that are still to be computed."""
        with self._change:
            return [(ticket.model.key, ticket.rows * ticket.remaining) for ticket in self._tickets]

    def close(self, *, drain_s: float = 0) -> None:
        """Take nothing more, go on for at most `drain_s` seconds with what is in hand, and cancel the rest."""
        with self._change:
            self._closing_at = min(self._closing_at, time.monotonic() + drain_s)
            self._change.notify()
        if threading.current_thread() is not self._thread:
            self._thread.join()

    # -- admission; all under the lock

    def _known(self, key: str) -> ServedModel:
        if key not in self._models:
            raise ValueError(f"no model {key!r} in this engine; it has {', '.join(sorted(self._models)) or 'none'}")
        return self._models[key]

    def _in_hand(self) -> int:
        return len(self._tickets) + len(self._calls) + self._calling

    def _admit(self, admitted: bool) -> None:
        if self._closing_at < float("inf"):
            raise Busy("the engine is closing", retry_after_s=1.0)
        served = max(1, len(self._served) + self._calling)
        if not admitted and self._in_hand() >= self.max_waiting + served:
            self._counts["busy"] += 1
            raise Busy(f"{self._in_hand() - served} requests wait already", self._retry_after_s())

    def _retry_after_s(self) -> float:
        """When the job nearest its end will have left, if all go on in turn; 1 to 60 seconds."""
        cycle_s = self._row_s * sum(ticket.rows for ticket in self._tickets)
        calls_s = self._call_s * len(self._calls)
        nearest = min((ticket.remaining for ticket in self._tickets), default=0)
        return min(max(nearest * cycle_s + calls_s, 1.0), 60.0)

    def _notify(self) -> None:
        with self._change:
            self._change.notify()

    # -- the engine's own thread

    @torch.no_grad()
    def _run(self) -> None:
        while self._wait():
            try:
                self._make_calls()
                self._end_those_that_must()
                self._advance(self._choose())
            except Exception as error:  # a broken accelerator, say: nobody shall wait for ever
                log.exception("the step engine could not go on with what it had")
                self._end_all(error)
        self._end_all(Cancelled("the engine was closed"))

    def _wait(self) -> bool:
        """Until there is work; False when the engine is to end."""
        with self._change:
            self._change.wait_for(lambda: self._in_hand() or self._closing_at < float("inf"))
            return self._in_hand() > 0 and time.monotonic() < self._closing_at

    def _end_those_that_must(self) -> None:
        with self._change:
            tickets = list(self._tickets)
        for ticket in tickets:
            if error := ticket.ending():
                self._end(ticket, error)

    def _make_calls(self) -> None:
        until = time.monotonic() + self._forward_s
        while call := self._next_call():
            began = time.monotonic()
            call.make()
            now = time.monotonic()
            with self._change:
                self._calling = 0
                self._counts["calls"] += 1
                self._call_s = _mean(self._call_s, now - began)
            if now >= until:
                return

    def _next_call(self) -> Call | None:
        with self._change:
            call = self._calls.next()
            self._calling = int(call is not None)
            return call

    def _choose(self) -> list[Ticket]:
        now = time.monotonic()

        def close(ticket: Ticket) -> bool:
            return ticket.deadline - now < 2 * ticket.remaining * self._forward_s

        with self._change:
            chosen = self._turns.choose(self._tickets, lambda ticket: ticket.model.capacity.rows(ticket.form), close)
            self._served = list(chosen)
        return chosen

    def _advance(self, group: list[Ticket]) -> None:
        """One forward and one step for the `group`; what fails in it fails alone."""
        if not group:
            return
        model, jobs = group[0].model, [ticket.job for ticket in group]
        rows = sum(ticket.rows for ticket in group)
        errors: dict[Ticket, Exception] = {}
        noises: list[torch.Tensor] | None = None
        began = time.monotonic()
        try:
            with model.capacity.measured(group[0].form, model.denoiser, rows):
                noises = noise_of(model.denoiser, jobs, [ticket.adapter for ticket in group])
                for ticket, noise in zip(group, noises, strict=True):
                    try:
                        settle(ticket.job, noise)
                    except Exception as error:
                        errors[ticket] = _failure(ticket, error)
                sound = finite(jobs)
        except Exception as error:
            if noises is not None:  # the accelerator failed later on: who has made the step is unknown
                raise
            self._forward_failed(group, rows, error)
            return
        for ticket, is_finite in zip(group, sound, strict=True):
            if not is_finite and ticket not in errors:
                errors[ticket] = NotFinite(f"latents are not finite after step {ticket.job.step}")
        self._count(group, rows, time.monotonic() - began)
        for ticket in group:
            ticket.lone = ticket.lone and len(group) == 1
            self._report(ticket, errors.get(ticket))

    def _count(self, group: list[Ticket], rows: int, seconds: float) -> None:
        with self._change:
            self._counts["forwards"] += 1
            self._counts["rows"] += rows
            self._counts["steps"] += len(group)
            self._largest = max(self._largest, rows)
            self._forward_s = _mean(self._forward_s, seconds)
            self._row_s = _mean(self._row_s, seconds / rows)

    def _report(self, ticket: Ticket, error: BaseException | None) -> None:
        if error is None and ticket.on_step:
            try:
                ticket.on_step(ticket.job)
            except Exception as raised:
                error = raised
        if error is not None or ticket.remaining == 0:
            self._end(ticket, error)

    def _forward_failed(self, group: list[Ticket], rows: int, error: Exception) -> None:
        """No job has made its step yet: try them alone, or in smaller company if memory was short."""
        short = isinstance(error, torch.OutOfMemoryError)
        if len(group) == 1:
            self._end(group[0], error if short else _failure(group[0], error))
        elif short:
            log.warning("out of memory with %d rows; fewer from now on", rows)
            group[0].model.capacity.out_of_memory(group[0].form, rows)
        else:
            for ticket in group:
                self._advance([ticket])

    def _end(self, ticket: Ticket, error: BaseException | None = None) -> None:
        outcomes: dict[type, str] = {type(None): "finished", Cancelled: "cancelled", Expired: "expired"}
        with self._change:
            self._tickets.remove(ticket)
            if ticket in self._served:
                self._served.remove(ticket)
            self._counts[outcomes.get(type(error), "failed")] += 1
            leaving = ticket.model.leaving
            last = leaving is not None and not any(other.model is ticket.model for other in self._tickets)
        ticket.end(error)
        if leaving is not None and last:
            leaving.set_result(None)

    def _end_all(self, error: BaseException) -> None:
        with self._change:
            tickets = list(self._tickets)
            calls = self._calls.take_all()
        for ticket in tickets:
            self._end(ticket, error)
        for call in calls:
            call.refuse(error)


def _failure(ticket: Ticket, error: Exception) -> JobFailed:
    log.warning("a job failed at step %d", ticket.job.step, exc_info=error)
    reason = str(error).strip().splitlines()
    return JobFailed(f"step {ticket.job.step} failed: {reason[0][:200] if reason else type(error).__name__}")


def _mean(before: float, now: float) -> float:
    return now if before == 0.0 else before + SMOOTHING * (now - before)
