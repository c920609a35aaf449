"""An edge's share of a picture, awaited: encode, denoise and decode on the step engine, and hand-offs checked."""

from __future__ import annotations

import asyncio
import io
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping, Sequence
from concurrent.futures import Future
from contextlib import asynccontextmanager
from typing import Any, TypeVar

import torch
from PIL import Image

from fedkd.inference.denoiser import Job, decode, encode, start, take_up
from fedkd.inference.handoff import HandOff, HandOffError
from fedkd.inference.schedulers import SchedulerError
from fedkd.inference.step_engine import Busy, Cancelled, Expired, JobFailed, NotFinite, StepEngine
from fedkd.models.control import control_conditions
from fedkd.serving.arrivals import submitted
from fedkd.serving.controls import Steering
from fedkd.serving.errors import EdgeFault
from fedkd.serving.served import Served
from fedkd.serving.sessions import Session
from fedkd.serving.sharing import Begun, Sharing, Wish

Result = TypeVar("Result")
OnStep = Callable[[Job], None]
SAME = ("scheduler", "scheduler_config", "arguments", "guidance_scale", "seed", "dtype")
PROBING = "probing"  # who owns steps that only tell what a prompt means
FORMATS = {"png": "PNG", "jpeg": "JPEG", "webp": "WEBP"}


def picture_bytes(image: Image.Image, form: str = "png", quality: int = 100) -> bytes:
    """A picture as a file: `form` is one of FORMATS; `quality` (0 to 100) holds for jpeg and webp."""
    buffer = io.BytesIO()
    image.save(buffer, format=FORMATS[form], quality=max(1, quality))
    return buffer.getvalue()


class Engine:
    """Work on the step engine, awaited: it ends with its answer or an EdgeFault, and with whoever waits for it."""

    def __init__(self, steps: StepEngine, sharing: Sharing | None = None) -> None:
        self.steps, self.sharing = steps, sharing
        self.open = True

    def close(self) -> None:
        """Take no more, and end what is in hand."""
        self.open = False
        self.steps.close()

    async def begin(
        self,
        served: Served,
        prompt: str,
        *,
        seeds: Sequence[int],
        num_inference_steps: int | None,
        guidance_scale: float | None,
        scheduler: str | None,
        scheduler_options: Mapping[str, Any],
        owner: str,
        steering: Steering | None = None,
    ) -> list[Job]:
        """Jobs before their first step, one a seed, all steered by the condition if there is one.

        EdgeFault 422 for a scheduler or number of steps that cannot be, 429 when the edge is busy. What follows of
        these jobs is let in without another look.
        """
        scale = served.defaults.guidance_scale if guidance_scale is None else guidance_scale
        count = served.defaults.num_inference_steps if num_inference_steps is None else num_inference_steps

        def work() -> list[Job]:
            conditions = encode(served.pipe, prompt, scale)
            if steering is not None:
                pixels = steering.pixels.to(served.device)
                conditions |= control_conditions(pixels, rows=2 if scale > 1 else 1, scale=steering.scale)
            facts: dict[str, Any] = {
                "num_inference_steps": count, "guidance_scale": scale, "scheduler": scheduler,
                "scheduler_options": scheduler_options,
            }  # fmt: skip
            return [start(served.pipe, conditions, seed=seed, **facts) for seed in seeds]

        try:
            return await self._call(work, owner, admitted=False)
        except SchedulerError as error:
            raise EdgeFault(422, str(error), param="scheduler", code="invalid_value") from error

    async def denoise(
        self,
        served: Served,
        job: Job,
        until: int,
        *,
        owner: str,
        deadline_s: float | None = None,
        exact: bool = False,
        on_step: OnStep | None = None,
        session: Session | None = None,
        admitted: bool = True,
        control: str = "",
    ) -> bool:
        """Take `job` to step `until`; whether all its forwards were its own.

        `control` is the kind of its condition, where one steers it.
        The ticket lies in `session` meanwhile, for others to cancel. EdgeFault 429 when the edge is busy, 409 when it
        was cancelled, 504 when its deadline passed, 422 when the job itself cannot go on.
        """
        if job.step >= until:
            return True
        if deadline_s is not None and deadline_s <= 0:
            raise _late()
        if session is not None and session.ended:
            raise _cancelled()
        try:
            ticket = self.steps.submit(
                served.key_of(control),
                job,
                until=until,
                deadline_s=deadline_s,
                owner=owner,
                exact=exact,
                on_step=on_step,
                admitted=admitted,
            )
        except Busy as error:
            raise _busy(error) from error
        submitted()
        if session is not None:
            session.tickets.append(ticket)
        try:
            await _outcome(ticket.future)
        except asyncio.CancelledError:
            ticket.cancel()
            raise
        except Cancelled as error:
            raise _cancelled() from error
        except Expired as error:
            raise _late() from error
        except JobFailed as error:
            raise EdgeFault(422, f"this picture cannot be drawn: {error}", code="cannot_be_drawn") from error
        finally:
            if session is not None and ticket in session.tickets:
                session.tickets.remove(ticket)
        return ticket.lone

    @asynccontextmanager
    async def joined(self, served: Served, job: Job, wish: Wish) -> AsyncIterator[Begun]:
        """`Sharing.joined`, or the job as it is where nothing is shared."""
        if self.sharing is None:
            yield Begun(job)
            return

        async def step(probe: Job) -> None:
            await self.denoise(served, probe, 1, owner=PROBING)

        async with self.sharing.joined(served, job, wish, step) as begun:
            yield begun

    async def picture(self, served: Served, latents: torch.Tensor, *, owner: str, admitted: bool = True) -> Image.Image:
        """The picture of latents (1, C, h, w); EdgeFault 429 when the edge is busy, unless it was `admitted`."""
        return await self._call(lambda: decode(served.pipe.vae, latents), owner, admitted=admitted)

    async def take_up(self, served: Served, data: bytes, session: Session | None = None) -> tuple[HandOff, Job]:
        """The job of a device's hand-off, with the session's conditions, or without one with its own.

        EdgeFault 400 when it is malformed, or is not that of this session and model.
        """

        def work() -> tuple[HandOff, Job]:
            # Not on the model's thread: a large or protected form takes its time to read.
            found = HandOff.from_bytes(data, model=served.digest, shape=(1, *served.latent_shape))
            if session is not None:
                _check_same_picture(found, session)
                found.conditions = session.conditions
            else:
                _check_conditions(found, served)
            return found, take_up(found, device=served.device)

        try:
            return await asyncio.to_thread(work)
        except HandOffError as error:
            raise EdgeFault(400, str(error), code="hand_off_refused") from error

    async def go_on(self, served: Served, job: Job, until: int, **options: Any) -> bool:
        """`denoise`, with its options, a job whose state came from a device: EdgeFault 400 when that state fails."""
        try:
            return await self.denoise(served, job, until, admitted=False, **options)
        except EdgeFault as error:
            if not isinstance(error.__cause__, JobFailed):
                raise
            code = "not_finite" if isinstance(error.__cause__, NotFinite) else "hand_off_refused"
            raise EdgeFault(400, f"hand-off refused: {error.__cause__}", code=code) from error

    async def _call(self, work: Callable[[], Result], owner: str, *, admitted: bool) -> Result:
        try:
            return await _outcome(self.steps.call(work, owner=owner, admitted=admitted))
        except Busy as error:
            raise _busy(error) from error
        except Cancelled as error:
            raise EdgeFault(503, "the edge is closing", code="closing") from error


async def _outcome(future: Future[Any]) -> Any:
    """Await a future of the engine's thread; whoever stops waiting does not take it from that thread's hands."""
    waiting = asyncio.wrap_future(future)
    waiting.add_done_callback(lambda done: None if done.cancelled() else done.exception())
    return await asyncio.shield(waiting)


def _cancelled() -> EdgeFault:
    return EdgeFault(409, "the picture was cancelled", code="cancelled")


def _late() -> EdgeFault:
    return EdgeFault(504, "not done within deadline_s", param="deadline_s", code="deadline_exceeded")


def _busy(error: Busy) -> EdgeFault:
    return EdgeFault(429, str(error), code="busy", retry_after_s=error.retry_after_s)


def _check_same_picture(found: HandOff, session: Session) -> None:
    sent = session.handed
    assert sent is not None
    for name in SAME:
        if getattr(found, name) != getattr(sent, name):
            raise HandOffError(f"hand-off refused: {name} is not that of this session")
    if found.step != session.returns_at:
        raise HandOffError(f"hand-off refused: it stands at step {found.step}, expected {session.returns_at}")


def _check_conditions(found: HandOff, served: Served) -> None:
    shapes = {name: tuple(tensor.shape[1:]) for name, tensor in (found.conditions or {}).items()}
    if not shapes:
        raise HandOffError("hand-off refused: it carries no conditions, and another edge's session is not known here")
    if shapes != served.condition_shapes:
        raise HandOffError(f"hand-off refused: conditions of shapes {shapes}, expected {served.condition_shapes}")
    if found.dtype != served.dtype:
        raise HandOffError(f"hand-off refused: dtype is {found.dtype}, this edge computes in {served.dtype}")


async def while_connected(receive: Callable[[], Awaitable[Any]], work: Awaitable[Result]) -> Result:
    """`work`, cancelled when the client goes away (EdgeFault 499, which nobody reads); the body must be read."""
    task = asyncio.ensure_future(work)
    leaving = asyncio.ensure_future(_gone(receive))
    try:
        await asyncio.wait({task, leaving}, return_when=asyncio.FIRST_COMPLETED)
        if task.done():
            return task.result()
        raise EdgeFault(499, "the client went away", code="client_closed_request")
    finally:
        pending = {each for each in (task, leaving) if not each.done()}
        for each in pending:
            each.cancel()
        if pending:
            await asyncio.wait(pending)


async def _gone(receive: Callable[[], Awaitable[Any]]) -> None:
    while (await receive())["type"] != "http.disconnect":
        pass
