"""Progress and previews of a session's picture, from the engine's thread to whoever follows."""

from __future__ import annotations

import asyncio
import base64
from collections.abc import Callable

import torch

from fedkd.inference.denoiser import Job
from fedkd.inference.preview import estimate
from fedkd.serving.engine import Engine, picture_bytes
from fedkd.serving.errors import EdgeFault
from fedkd.serving.sessions import Session


def reporting(session: Session, engine: Engine) -> Callable[[Job], None]:
    """What the step engine calls after each step of the session's picture.

    A preview is the picture that the last evaluation stands for. It is made only when somebody asked for it, one at a
    time for a session, and left out while the edge is busy.
    """
    channel = session.channel
    making: set[asyncio.Task[None]] = set()

    def on_step(job: Job) -> None:
        channel.tell_progress(_facts(job.step, job.total))
        if channel.wants_preview(job.step, job.total):
            channel.tell(begin, estimate(job).detach().clone(), job.step, job.total)

    def begin(latents: torch.Tensor, step: int, total: int) -> None:
        if not making:
            task = asyncio.ensure_future(preview(latents, step, total))
            making.add(task)
            task.add_done_callback(making.discard)

    async def preview(latents: torch.Tensor, step: int, total: int) -> None:
        try:
            image = await engine.picture(session.served, latents, owner=session.owner, admitted=False)
        except EdgeFault:
            return
        png = await asyncio.to_thread(picture_bytes, image)
        facts = _facts(step, total)
        channel.publish("session.preview", {**facts, "b64_png": base64.b64encode(png).decode("ascii")})

    return on_step


def _facts(step: int, total: int) -> dict[str, object]:
    return {"step": step, "total": total, "by": "edge"}
