"""What the edge accepts and answers as JSON."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field

from fedkd.inference.schedulers import SCHEDULERS
from fedkd.inference.wire import Form

Prompt = Annotated[str, Field(min_length=1, max_length=4000)]
Steps = Annotated[int, Field(ge=1, le=1000)]
DeviceSteps = Annotated[int, Field(ge=0, le=2000)]
Guidance = Annotated[float, Field(ge=0, le=100, allow_inf_nan=False)]
Seed = Annotated[int, Field(ge=0, lt=1 << 63)]
Deadline = Annotated[float, Field(gt=0, le=86_400, allow_inf_nan=False)]
Name = Annotated[str, Field(max_length=200)]
ControlScale = Annotated[float, Field(ge=0, le=2, allow_inf_nan=False)]
ID_PATTERN = "^[0-9a-f]{32}$"
SessionId = Annotated[str, Field(pattern=ID_PATTERN)]
# Told in the description, checked where the answer can name the nearest, or what OpenAI's client expects.
ResponseFormat = Annotated[str, Field(max_length=20, json_schema_extra={"enum": ["b64_json"]})]
OutputFormat = Annotated[str, Field(max_length=20, json_schema_extra={"enum": ["png", "jpeg", "webp"]})]
Scheduler = Annotated[str, Field(max_length=200, json_schema_extra={"enum": list(SCHEDULERS)})]
Order = Literal["device_first", "edge_first"]


class SchedulerOptions(BaseModel):
    """Changes to the scheduler's configuration, in diffusers' own words; what it does not take is refused."""

    model_config = ConfigDict(extra="forbid")

    solver_order: Annotated[int, Field(ge=1, le=3)] | None = None
    algorithm_type: Literal["dpmsolver++", "sde-dpmsolver++"] | None = None
    solver_type: Literal["midpoint", "heun", "bh1", "bh2"] | None = None
    use_karras_sigmas: bool | None = None
    timestep_spacing: Literal["leading", "linspace", "trailing"] | None = None
    skip_prk_steps: bool | None = None


class Sampled(BaseModel):
    """What both kinds of request say of how a picture is drawn; what is left out is the model's default."""

    num_inference_steps: Steps | None = None
    guidance_scale: Guidance | None = None
    scheduler: Scheduler | None = None
    scheduler_options: SchedulerOptions | None = None

    def options(self) -> dict[str, Any]:
        """The scheduler options that were given."""
        return self.scheduler_options.model_dump(exclude_none=True) if self.scheduler_options else {}


class ConditionFacts(BaseModel):
    """A visual condition that the device extracted: its kind (canny, depth…), and `image`, a small picture in base64.

    `scale` weighs what the ControlNet adds.
    """

    model_config = ConfigDict(extra="forbid")

    kind: Annotated[str, Field(min_length=1, max_length=40)]
    image: Annotated[str, Field(min_length=1, max_length=2_000_000)]
    scale: ControlScale = 1.0


class SessionRequest(Sampled):
    """Open a split session: the device does `device_steps` evaluations of the denoiser, the edge the rest.

    `id` (32 hexadecimal digits, chosen at random) lets the client follow the events while this request runs.
    `wire` is the form in which the edge sends latents; `exact` keeps this picture's forwards apart from other
    requests', so that it equals the unsplit pipeline bit for bit. `with_conditions` asks for the prompt's embeddings,
    which are sent anyway when the device has steps to do.
    """

    model_config = ConfigDict(extra="forbid")

    prompt: Prompt
    model: Name | None = None
    device_steps: DeviceSteps = 0
    order: Order = "device_first"
    seed: Seed = 0
    wire: Form = "exact"
    exact: bool = False
    deadline_s: Deadline | None = None
    with_conditions: bool | None = None
    id: SessionId | None = None
    condition: ConditionFacts | None = None


class ImageRequest(Sampled):
    """OpenAI's image generation request, with extras (`seed`, `num_inference_steps`…); others are ignored.

    `exact` computes the picture apart from other requests. Where the edge shares steps, a request with a seed shares
    with those of the same seed alone, one without a seed, or with `any_seed`, with any other such, whose seed it takes.
    """

    model_config = ConfigDict(extra="ignore")

    prompt: Prompt
    model: Name | None = None
    n: Annotated[int, Field(ge=1, le=10)] | None = None
    size: Annotated[str, Field(max_length=20)] | None = None
    response_format: ResponseFormat | None = None
    output_format: OutputFormat | None = None
    output_compression: Annotated[int, Field(ge=0, le=100)] | None = None
    stream: bool | None = None
    partial_images: Annotated[int, Field(ge=0, le=3)] | None = None
    seed: Seed | None = None
    exact: bool = False
    deadline_s: Deadline | None = None
    any_seed: bool = False


class EditRequest(ImageRequest):
    """OpenAI's image edit request but for its picture, with extras.

    `condition` is what is extracted from the picture (canny…; default: what the model takes), `extracted` says that it
    is a condition already, and `control_scale` weighs it.
    """

    condition: Annotated[str, Field(max_length=40)] | None = None
    extracted: bool = False
    control_scale: ControlScale = 1.0


class ErrorFacts(BaseModel):
    """What went wrong, in OpenAI's form."""

    message: str
    type: str
    param: str | None
    code: str | None


class ErrorAnswer(BaseModel):
    """The body of every answer that is not a success."""

    error: ErrorFacts


class PictureData(BaseModel):
    """One picture."""

    b64_json: str


class Pictures(BaseModel):
    """The pictures of an image request; picture i of n was drawn from seed + i, a shared one from its group's seed."""

    created: int
    data: list[PictureData]
    seed: int
    output_format: str
    size: str


class ModelCard(BaseModel):
    """A served model as OpenAI's clients list it."""

    id: str
    object: Literal["model"] = "model"
    created: int
    owned_by: str = "fedkd"


class ModelList(BaseModel):
    """The served models."""

    object: Literal["list"] = "list"
    data: list[ModelCard]


class ModelFacts(BaseModel):
    """What a device needs to know of a model: its files by digest, classes, scheduler, defaults, the edge's build."""

    model_config = ConfigDict(extra="allow")

    name: str
    version: str
    digest: str
    pipeline: str | None
    classes: dict[str, str]
    files: list[dict[str, Any]]
    scheduler: dict[str, Any]
    schedulers: list[str]
    resolution: list[int]
    num_inference_steps: int
    guidance_scale: float
    dtype: str
    features: list[str]
    build: dict[str, Any]
    load: dict[str, Any] = Field(default_factory=dict)


class Status(BaseModel):
    """Whether the edge is up, or ready."""

    status: str
