"""What the edge accepts as JSON: the bodies of its two ways to ask for a picture."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field

Prompt = Annotated[str, Field(min_length=1, max_length=4000)]
Steps = Annotated[int, Field(ge=1, le=1000)]
Guidance = Annotated[float, Field(ge=0, le=100, allow_inf_nan=False)]
Seed = Annotated[int, Field(ge=0, lt=1 << 63)]


class SessionRequest(BaseModel):
    """Open a split session: the device does `device_steps` evaluations of the denoiser, the edge the rest."""

    model_config = ConfigDict(extra="forbid")

    prompt: Prompt
    num_inference_steps: Steps | None = None
    device_steps: Annotated[int, Field(ge=0, le=2000)] = 0
    order: Literal["device_first", "edge_first"] = "device_first"
    seed: Seed = 0
    guidance_scale: Guidance | None = None
    scheduler: str | None = None


class ImageRequest(BaseModel):
    """OpenAI's image generation request, with extras (`seed`, `num_inference_steps`…); others are ignored."""

    model_config = ConfigDict(extra="ignore")

    prompt: Prompt
    model: str | None = None
    n: Annotated[int, Field(ge=1, le=10)] | None = None
    size: str | None = None
    response_format: str | None = None
    stream: bool | None = None
    seed: Seed | None = None
    num_inference_steps: Steps | None = None
    guidance_scale: Guidance | None = None
    scheduler: str | None = None
