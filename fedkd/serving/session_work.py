"""What an edge does in a split session: open or resume it, hand over, and finish the picture."""

from __future__ import annotations

import asyncio
import json
import time
from dataclasses import replace
from typing import Any

import torch
from fastapi.responses import Response
from safetensors.torch import save

from fedkd.inference.denoiser import Job, hand_off
from fedkd.inference.handoff import FORMAT, MAX_HEADER_BYTES
from fedkd.serving.controls import Conditions, Steering
from fedkd.serving.engine import Engine, picture_bytes
from fedkd.serving.errors import EdgeFault
from fedkd.serving.messages import SessionRequest
from fedkd.serving.metrics import EdgeMetrics
from fedkd.serving.models import EdgeModels
from fedkd.serving.previews import reporting
from fedkd.serving.sessions import Session, SessionStore
from fedkd.serving.sharing import Begun, Wish

SAFETENSORS = "application/x-safetensors"


class SessionWork:
    """What the edge does in a split session, and what it answers."""

    def __init__(self, models: EdgeModels, engine: Engine, sessions: SessionStore, metrics: EdgeMetrics) -> None:
        self.models, self.engine, self.sessions, self.metrics = models, engine, sessions, metrics
        self.conditions = Conditions()

    def make(self, session: Session) -> Session:
        """Keep a new session, whose model is taken; EdgeFault 429 or 409 when it cannot be kept."""
        try:
            self.sessions.add(session)
        except EdgeFault:
            self.models.release(session.served)
            raise
        return session

    async def open(self, session: Session, asked: SessionRequest) -> Response:
        """Begin the picture, with the edge's steps where it goes first; the hand-off."""
        began = time.perf_counter()
        steering: Steering | None = None
        if asked.condition is not None:
            told, (height, width) = asked.condition, session.served.resolution
            steering = await self.conditions.extracted(
                session.served.controls, told.kind, told.image, told.scale, (width, height)
            )
            session.control = steering.kind
        (job,) = await self.engine.begin(
            session.served,
            asked.prompt,
            seeds=[asked.seed],
            num_inference_steps=asked.num_inference_steps,
            guidance_scale=asked.guidance_scale,
            scheduler=asked.scheduler,
            scheduler_options=asked.options(),
            owner=session.owner,
            steering=steering,
        )
        session.conditions = job.conditions
        left_s = asked.deadline_s and asked.deadline_s - (time.perf_counter() - began)
        until = max(0, job.total - session.device_steps) if session.order == "edge_first" else 0
        # steps that a condition steered are nobody else's
        wish = Wish(asked.prompt, until, session.alone or steering is not None, deadline_s=left_s)
        async with self.engine.joined(session.served, job, wish) as begun:
            job = begun.job
            session.exact &= not begun.shared
            left_s = asked.deadline_s and asked.deadline_s - (time.perf_counter() - began)
            await self._first_part(session, job, left_s, begun=begun)
        wanted = asked.device_steps > 0 if asked.with_conditions is None else asked.with_conditions
        return await self._handed(session, job, wanted, began)

    async def resume(self, session: Session, data: bytes, with_conditions: bool | None) -> Response:
        """Take over a picture that was begun at another edge; the hand-off."""
        began = time.perf_counter()
        found, job = await self.engine.take_up(session.served, data)
        session.conditions = job.conditions
        session.exact = found.form == "exact"
        await self._first_part(session, job, session.deadline_s)
        wanted = job.step < session.returns_at if with_conditions is None else with_conditions
        return await self._handed(session, job, wanted, began)

    async def finish(self, session: Session, data: bytes, result: str, deadline_s: float | None) -> Response:
        """Go on with what the device handed back; the picture, its latents, or both."""
        began, served = time.perf_counter(), session.served
        found, job = await self.engine.take_up(served, data, session)
        alone = await self.engine.go_on(served, job, job.total, **self._options(session, deadline_s))
        picture = b""
        if result != "latents":
            image = await self.engine.picture(served, job.latents, owner=session.owner)
            picture = await asyncio.to_thread(picture_bytes, image)
            self.metrics.pictures.labels(served.name).inc()
        exact = session.exact and alone and found.form == session.wire == "exact"
        headers = {
            "X-Fedkd-Edge-Seconds": f"{time.perf_counter() - began:.6f}",
            "X-Fedkd-Exact": str(exact).lower(),
            "X-Fedkd-Model-Digest": session.served.digest,
        }
        session.channel.end("session.ended", {"status": "finished", "step": job.total, "total": job.total})
        if result == "png":
            return Response(picture, 200, headers, "image/png")
        tensors = {"latents": job.latents.cpu().contiguous()}
        if picture:
            tensors["png"] = torch.frombuffer(bytearray(picture), dtype=torch.uint8)
        return Response(save(tensors), 200, headers, SAFETENSORS)

    async def _first_part(
        self, session: Session, job: Job, deadline_s: float | None, begun: Begun | None = None
    ) -> None:
        session.total = job.total
        if session.device_steps > job.total:
            raise EdgeFault(
                422,
                f"device_steps={session.device_steps} is more than the {job.total} evaluations of "
                f"{type(job.scheduler).__name__}; give 0 to {job.total}",
                param="device_steps",
                code="invalid_value",
            )
        if job.step > session.returns_at:
            raise EdgeFault(
                400,
                f"hand-off refused: it stands at step {job.step}, and the device hands back at {session.returns_at}",
                code="hand_off_refused",
            )
        if session.order == "edge_first":
            until = max(job.step, job.total - session.device_steps)
            options = self._options(session, deadline_s)
            if begun is None:  # its state came from a device
                session.exact &= await self.engine.go_on(session.served, job, until, **options)
            else:
                options["on_step"] = begun.on_step(options["on_step"])
                session.exact &= await self.engine.denoise(session.served, job, until, **options)

    async def _handed(self, session: Session, job: Job, with_conditions: bool, began: float) -> Response:
        def work() -> bytes:
            handed = hand_off(job, session.served.digest, with_conditions=with_conditions)
            if handed.conditions is not None:  # the device has its own condition, which is not small as pixels
                told = {name: each for name, each in handed.conditions.items() if not name.startswith("control_")}
                handed = replace(handed, conditions=told)
            session.handed = replace(handed, conditions=None)
            return handed.to_bytes(form=session.wire)

        data = await asyncio.to_thread(work)
        session.channel.publish("session.handed_over", {"step": job.step, "total": job.total})
        headers = {
            "Location": f"/v1/sessions/{session.id}",
            "X-Fedkd-Session": session.id,
            "X-Fedkd-Edge-Seconds": f"{time.perf_counter() - began:.6f}",
            "X-Fedkd-Exact": str(session.exact and session.wire == "exact").lower(),
            "X-Fedkd-Model-Digest": session.served.digest,
        }
        return Response(data, 201, headers, SAFETENSORS)

    def _options(self, session: Session, deadline_s: float | None) -> dict[str, Any]:
        return {
            "owner": session.owner,
            "deadline_s": deadline_s,
            "exact": session.alone,
            "on_step": reporting(session, self.engine),
            "session": session,
            "control": session.control,
        }


def digest_of(data: bytes) -> str:
    """The digest of the model that a hand-off names; empty when its header cannot be read."""
    size = int.from_bytes(data[:8], "little")
    try:
        if size > min(MAX_HEADER_BYTES, len(data) - 8):
            return ""
        found = json.loads(json.loads(data[8 : 8 + size])["__metadata__"][FORMAT])["model"]
    except (ValueError, KeyError, TypeError, RecursionError):
        return ""
    return found if isinstance(found, str) else ""
