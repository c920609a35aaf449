"""What a request asks of whichever edge draws it: its model and work, and its body with nothing left to chance."""

from __future__ import annotations

import json
import secrets
import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from secrets import randbits
from typing import Any
from urllib.parse import parse_qsl, urlencode

from pydantic import ValidationError

from fedkd.serving.messages import ImageRequest, SessionRequest
from fedkd.serving.peers import ModelReport
from fedkd.serving.session_work import digest_of

IMAGES, SESSIONS, RESUME = "/v1/images/generations", "/v1/sessions", "/v1/sessions/resume"


@dataclass(frozen=True)
class Asked:
    """A request that any edge may answer, with the same picture wherever it does.

    `model` is '' for an edge's default one, `digest` '' for any version. `steps` are those left to the edge,
    None where the model's default holds less `device_steps`; `rows` of the denoiser follow from the guidance.
    """

    path: str
    body: bytes
    query: str = ""
    model: str = ""
    digest: str = ""
    pictures: int = 1
    num_inference_steps: int | None = None
    device_steps: int = 0
    guidance_scale: float | None = None
    session: str = ""
    stream: bool = False
    facts: Mapping[str, Any] = field(default_factory=dict)
    began: float = field(default_factory=time.monotonic)

    @property
    def url(self) -> str:
        """Path and query."""
        return f"{self.path}?{self.query}" if self.query else self.path

    def flop(self, model: ModelReport) -> float:
        """The edge's work on it, in FLOP, for a model as an edge reports it."""
        steps = (self.num_inference_steps or model.num_inference_steps) - self.device_steps
        scale = model.guidance_scale if self.guidance_scale is None else self.guidance_scale
        return self.pictures * max(0, steps) * (2 if scale > 1 else 1) * model.row_flop

    def sent(self, model: str) -> bytes:
        """The body for an edge that is to use `model`; a deadline is what is left of it."""
        if not self.facts:
            return self.body
        said = {**self.facts, "model": model}
        if deadline_s := said.get("deadline_s"):
            said["deadline_s"] = max(0.001, deadline_s - (time.monotonic() - self.began))
        return json.dumps(said).encode()


def asked_of(path: str, query: str, body: bytes) -> Asked | None:
    """The request; None for one that cannot be read, for the edge itself to say what is wrong with it.

    A seed, or a session's id, that was left out is drawn here: asked again elsewhere, it is the same picture.
    """
    if path == RESUME:
        return _resume(query, body)
    try:
        read = ImageRequest if path == IMAGES else SessionRequest
        asked: Any = read.model_validate_json(body)
        facts: dict[str, Any] = json.loads(body)
    except (ValidationError, ValueError, RecursionError):
        return None
    if path == IMAGES:
        pictures, device_steps, session = asked.n or 1, 0, ""
        facts["any_seed"] = asked.any_seed or asked.seed is None
        facts["seed"] = randbits(31) if asked.seed is None else asked.seed
    else:
        pictures, device_steps, session = 1, asked.device_steps, asked.id or secrets.token_hex(16)
        facts["id"] = session
    return Asked(
        path,
        body,
        query,
        model=asked.model or "",
        pictures=pictures,
        num_inference_steps=asked.num_inference_steps,
        device_steps=device_steps,
        guidance_scale=asked.guidance_scale,
        session=session,
        stream=bool(facts.get("stream")),
        facts=facts,
    )


def _resume(query: str, body: bytes) -> Asked | None:
    said = dict(parse_qsl(query))
    said.setdefault("id", secrets.token_hex(16))
    steps = said.get("device_steps", "")
    return Asked(
        RESUME,
        body,
        urlencode(said),
        model=said.get("model", ""),
        digest=digest_of(body),
        device_steps=int(steps) if steps.isdecimal() and len(steps) < 6 else 0,
        session=said["id"],
    )
