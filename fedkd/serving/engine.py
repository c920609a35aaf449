"""The edge's model: one thread owns it, and does an edge's share of a picture."""

from __future__ import annotations

import asyncio
import io
import json
import logging
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any, TypeVar

import diffusers
import torch
from PIL import Image

from fedkd.inference.denoiser import decode, denoise, encode, hand_off, start, take_up
from fedkd.inference.handoff import HandOff, HandOffError
from fedkd.inference.schedulers import SCHEDULERS, SchedulerError, config_of, scheduler_class
from fedkd.models.pipeline import denoiser_of, load_pipeline, resolve_model
from fedkd.serving.components import component_files, model_digest
from fedkd.serving.errors import EdgeFault
from fedkd.serving.messages import SessionRequest
from fedkd.serving.sessions import Session

log = logging.getLogger("fedkd.serving")
Result = TypeVar("Result")


def png_bytes(image: Image.Image) -> bytes:
    """A picture as PNG."""
    buffer = io.BytesIO()
    image.save(buffer, format="PNG")
    return buffer.getvalue()


class Engine:
    """A pipeline, its identity, and the one thread that may touch it."""

    def __init__(
        self,
        checkpoint: str,
        *,
        device: str,
        dtype: str,
        name: str,
        version: str,
        scheduler: str,
        num_inference_steps: int,
        guidance_scale: float,
        max_waiting: int,
    ) -> None:
        source = resolve_model(checkpoint)
        if not Path(source).is_dir():  # a hub id: its cached or fetched snapshot
            source = str(diffusers.DiffusionPipeline.download(source, use_safetensors=True))
        self.folder = Path(source)
        scheduler_class(scheduler)
        self.pipe: Any = load_pipeline(source, device=device, dtype=dtype, scheduler=scheduler)
        self.files = component_files(self.folder)
        self.digest = model_digest(self.files)
        self.name, self.version = name, version or _manifest_version(self.folder)
        self.device, self.dtype = device, dtype
        self.num_inference_steps, self.guidance_scale = num_inference_steps, guidance_scale
        self.max_waiting = max_waiting
        self.waiting = 0
        self._thread = ThreadPoolExecutor(max_workers=1, thread_name_prefix="fedkd-model")

    def close(self) -> None:
        """Let the current work end and take no more."""
        self._thread.shutdown(wait=False, cancel_futures=True)

    async def run(self, work: Callable[..., Result], *arguments: Any) -> Result:
        """Run `work` on the model's thread, first come first served; EdgeFault 503 when too many wait."""
        if self.waiting >= self.max_waiting:
            raise EdgeFault(503, f"the edge is busy: {self.waiting} requests wait already", code="busy")
        self.waiting += 1
        try:
            return await asyncio.get_running_loop().run_in_executor(self._thread, work, *arguments)
        finally:
            self.waiting -= 1

    def describe(self) -> dict[str, Any]:
        """What `GET /v1/model` answers."""
        network: Any = denoiser_of(self.pipe).config
        side = network.sample_size
        height, width = (side, side) if isinstance(side, int) else side
        scale = self.pipe.vae_scale_factor
        index = json.loads((self.folder / "model_index.json").read_text(encoding="utf-8"))
        return {
            "name": self.name,
            "version": self.version,
            "digest": self.digest,
            "pipeline": index.get("_class_name"),
            "classes": {
                key: made[1]
                for key, made in index.items()
                if not key.startswith("_") and isinstance(made, list) and made[1]
            },
            "files": [asdict(file) for file in self.files],
            "scheduler": {
                "class": type(self.pipe.scheduler).__name__,
                "config": config_of(self.pipe.scheduler),
            },
            "schedulers": list(SCHEDULERS),
            "resolution": [int(height * scale), int(width * scale)],
            "num_inference_steps": self.num_inference_steps,
            "guidance_scale": self.guidance_scale,
            "dtype": self.dtype,
            "build": {
                "torch": torch.__version__,
                "diffusers": diffusers.__version__,
                "threads": torch.get_num_threads(),
                "device": self.device,
            },
        }

    def open(self, request: SessionRequest) -> tuple[Session, bytes, float]:
        """Begin a split picture; answers the session, the hand-off's bytes and the seconds it took.

        For `edge_first` the edge has done its steps.
        """
        began = time.perf_counter()
        guidance = self.guidance_scale if request.guidance_scale is None else request.guidance_scale
        job = self._start(
            request.prompt, request.seed, request.num_inference_steps, guidance, request.scheduler
        )
        if request.device_steps > job.total:
            raise EdgeFault(
                422,
                f"device_steps={request.device_steps} is more than the {job.total} evaluations of "
                f"{type(job.scheduler).__name__}; give 0 to {job.total}",
                param="device_steps",
                code="invalid_value",
            )
        if request.order == "edge_first":
            denoise(denoiser_of(self.pipe), job, job.total - request.device_steps)
        handed = hand_off(job, self.digest, with_conditions=request.device_steps > 0)
        data = handed.to_bytes()
        assert job.conditions is not None
        session = Session(
            conditions=job.conditions,
            handed=replace(handed, conditions=None),
            order=request.order,
            device_steps=request.device_steps,
            total=job.total,
        )
        return session, data, time.perf_counter() - began

    def finish(self, session: Session, data: bytes, with_picture: bool) -> tuple[torch.Tensor, bytes, float]:
        """Go on with what the device handed back: final latents (1, C, h, w), PNG bytes (or b''), seconds."""
        began = time.perf_counter()
        try:
            found = HandOff.from_bytes(data, model=session.handed.model)
            _check_same_picture(found, session)
            job = take_up(replace(found, conditions=None), conditions=session.conditions, device=self.device)
        except HandOffError as error:
            raise EdgeFault(400, str(error), code="hand_off_refused") from error
        if session.handed.model != self.digest:
            raise EdgeFault(
                409, "the edge serves another model now; open a new session", code="model_changed"
            )
        try:
            denoise(denoiser_of(self.pipe), job)
        except (ArithmeticError, AttributeError, LookupError, RuntimeError, TypeError, ValueError) as error:
            log.warning("a device's hand-off could not be gone on with", exc_info=error)
            raise EdgeFault(
                400, "hand-off refused: its scheduler state does not work", code="hand_off_refused"
            ) from error
        if not torch.isfinite(job.latents).all():
            raise EdgeFault(
                400, "hand-off refused: it leads to latents that are not finite", code="not_finite"
            )
        picture = png_bytes(decode(self.pipe.vae, job.latents)) if with_picture else b""
        return job.latents.cpu(), picture, time.perf_counter() - began

    def draw(
        self, prompt: str, seed: int, steps: int | None, guidance: float | None, scheduler: str | None
    ) -> bytes:
        """A whole picture at the edge, as PNG."""
        scale = self.guidance_scale if guidance is None else guidance
        job = denoise(denoiser_of(self.pipe), self._start(prompt, seed, steps, scale, scheduler))
        return png_bytes(decode(self.pipe.vae, job.latents))

    def _start(
        self, prompt: str, seed: int, steps: int | None, guidance: float, scheduler: str | None
    ) -> Any:
        try:
            return start(
                self.pipe,
                encode(self.pipe, prompt, guidance),
                seed=seed,
                num_inference_steps=self.num_inference_steps if steps is None else steps,
                guidance_scale=guidance,
                scheduler=scheduler,
            )
        except SchedulerError as error:
            raise EdgeFault(422, str(error), param="scheduler", code="invalid_value") from error


def _manifest_version(folder: Path) -> str:
    try:
        found = json.loads((folder / "manifest.json").read_text(encoding="utf-8"))
        return str(found.get("version", ""))
    except (OSError, ValueError, AttributeError):
        return ""


def _check_same_picture(found: HandOff, session: Session) -> None:
    sent = session.handed
    for name in ("scheduler", "scheduler_config", "arguments", "guidance_scale", "seed", "dtype"):
        if getattr(found, name) != getattr(sent, name):
            raise HandOffError(f"hand-off refused: {name} is not that of this session")
    if found.latents.shape != sent.latents.shape:
        raise HandOffError(f"hand-off refused: latents of shape {tuple(found.latents.shape)}")
    if found.step != session.returns_at:
        raise HandOffError(f"hand-off refused: it stands at step {found.step}, expected {session.returns_at}")
