"""The edge's HTTP service: whole pictures in OpenAI's form, split sessions, and the models' files."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import Any

from fastapi import FastAPI

from fedkd import __version__
from fedkd.inference.step_engine import StepEngine
from fedkd.serving.balancing import DEFAULT_RULE
from fedkd.serving.cluster import Cluster, peer_routes
from fedkd.serving.crossroads import Crossroads
from fedkd.serving.engine import Engine
from fedkd.serving.errors import install_handlers
from fedkd.serving.gate import Gate
from fedkd.serving.messages import ErrorAnswer
from fedkd.serving.metrics import EdgeMetrics
from fedkd.serving.models import Defaults, EdgeModels
from fedkd.serving.routes_edits import edit_routes
from fedkd.serving.routes_images import image_routes
from fedkd.serving.routes_models import model_routes
from fedkd.serving.routes_page import PAGE_PATHS, page_routes
from fedkd.serving.routes_sessions import session_routes
from fedkd.serving.sessions import Session, SessionStore
from fedkd.serving.sharing import sharing_of
from fedkd.serving.sources import Source, source_of
from fedkd.serving.tokens import Limits, TokenError, token_book

log = logging.getLogger("fedkd.serving")
SWEEP_S = 1.0
ERRORS: dict[int | str, dict[str, Any]] = {
    "4XX": {"model": ErrorAnswer, "description": "What was asked for cannot be had; the error says why"},
    "5XX": {"model": ErrorAnswer, "description": "The edge failed, or was too late"},
}


@dataclass(frozen=True)
class EdgeSettings:
    """How an edge serves.

    `scheduler`, `num_inference_steps` and `guidance_scale` hold where neither a request nor the checkpoint's manifest
    says otherwise. `token` and the file `tokens` name who may ask; `requests_per_minute` and `concurrent` are the
    limits of tokens that have none of their own (0: none). `max_rows` bounds a forward (0: learned), `batch=False`
    computes every request alone. Every `refresh_s` seconds newer versions are looked for (0: never).

    With `peers` (URLs of other edges; this one is reached at `url`) each request is drawn where `dispatch`, the name
    of a rule, has it; others are sent on (`forward`: proxy), or their clients are told where to (redirect). Edges
    ask each other for reports every `gossip_s` seconds, and show `peer_token` where there are tokens. At most
    `most_on_demand` models that are fetched on demand are held at once. `controlnets` ([KIND=]PLACE) let visual
    conditions steer those models that they were made for.

    With `share_profile`, a file that `fedkd bench sharing` writes, up to `share_group` pictures whose prompts mean
    nearly the same share their first steps, as many as lose `share_loss` of pictures at most; latents for later ones
    take `share_cache_bytes`.
    """

    device: str = "cpu"
    dtype: str = "float32"
    scheduler: str = "DDIMScheduler"
    num_inference_steps: int = 12
    guidance_scale: float = 2.0
    token: str = ""
    tokens: str = ""
    requests_per_minute: float = 0.0
    concurrent: int = 0
    max_sessions: int = 64
    session_lifetime_s: float = 600.0
    max_body_bytes: int = 64 << 20
    body_timeout_s: float = 30.0
    send_timeout_s: float = 60.0
    max_waiting: int = 64
    max_rows: int = 0
    batch: bool = True
    refresh_s: float = 0.0
    url: str = ""
    peers: Sequence[str] = ()
    peer_token: str = ""
    dispatch: str = DEFAULT_RULE
    forward: str = "proxy"
    gossip_s: float = 0.5
    most_on_demand: int = 1
    share_profile: str = ""
    share_loss: float = 0.01
    share_group: int = 8
    share_cache_bytes: int = 64 << 20
    controlnets: Sequence[str] = ()


@dataclass
class Edge:
    """The parts of a running edge; `app.state.edge` of its service."""

    settings: EdgeSettings
    steps: StepEngine
    models: EdgeModels
    engine: Engine
    metrics: EdgeMetrics
    on_demand: Mapping[str, Source] = field(default_factory=dict)
    sessions: SessionStore = field(init=False)
    cluster: Cluster | None = None

    def __post_init__(self) -> None:
        given = self.settings
        self.sessions = SessionStore(given.max_sessions, given.session_lifetime_s, self._session_ended)
        if given.peers or self.on_demand:
            self.cluster = Cluster(
                self.models,
                self.engine,
                self.sessions,
                self.metrics,
                here=given.url,
                peers=given.peers,
                token=given.peer_token,
                dispatch=given.dispatch,
                forward=given.forward,
                gossip_s=given.gossip_s,
                on_demand=self.on_demand,
                most_on_demand=given.most_on_demand,
            )

    def _session_ended(self, session: Session, outcome: str) -> None:
        session.channel.end("session.ended", {"status": outcome})
        self.metrics.sessions.labels(outcome).inc()
        self.models.release(session.served)

    async def sweep(self) -> None:
        """Drop expired sessions, for as long as the edge runs."""
        while True:
            await asyncio.sleep(SWEEP_S)
            self.sessions.sweep()

    async def refresh(self) -> None:
        """Bring newer versions, for as long as the edge runs."""
        while True:
            await asyncio.sleep(self.settings.refresh_s)
            try:
                await asyncio.to_thread(self.models.refresh)
            except Exception:
                log.exception("looking for newer versions failed")

    def close(self) -> None:
        """End all work and give everything free."""
        self.sessions.clear()
        self.engine.close()
        self.models.close()


def create_app(
    checkpoint: str = "",
    *,
    name: str = "tiny-sd",
    version: str = "",
    models: Mapping[str, Source | str] | None = None,
    on_demand: Mapping[str, Source | str] | None = None,
    registry: str = "",
    cache: str = "",
    registry_token: str = "",
    **settings: Any,
) -> FastAPI:
    """The service for the diffusers folder, shipped name or hub id `checkpoint`, served as `name`.

    With `registry` (a folder or URL) it is `name[:version|alias]` there, pulled into the folder `cache` if one is
    given, and followed as `refresh_s` says. `models` are more of them by name, as such or as sources; those `on_demand`
    are fetched when somebody first asks for them. `settings` are those of EdgeSettings. ModelError, SchedulerError,
    CheckpointError or TokenError when it cannot be served.
    """
    given = EdgeSettings(**settings)
    limits = Limits(given.requests_per_minute, given.concurrent)
    tokens = token_book(given.token, given.tokens, default=limits, peer_token=given.peer_token)
    if given.peers and tokens and not given.peer_token:
        raise TokenError("peer_token is empty, and peers would be refused for want of a token; give all edges one")

    def found(source: Source | str) -> Source:
        return source_of(source, registry, cache, registry_token) if isinstance(source, str) else source

    edge = _edge(given, {each: found(source) for each, source in (on_demand or {}).items()})
    try:
        wanted: dict[str, Source | str] = {name: checkpoint} if checkpoint else {}
        for each, source in (wanted | dict(models or {})).items():
            edge.models.add(each, found(source), version=version if each == name else "")
        edge.models.check_controls()
    except BaseException:
        edge.close()
        raise
    return _app(edge, tokens)


def _edge(given: EdgeSettings, on_demand: Mapping[str, Source]) -> Edge:
    defaults = Defaults(given.scheduler, given.num_inference_steps, given.guidance_scale)
    steps = StepEngine(max_rows=given.max_rows, max_waiting=given.max_waiting, batch=given.batch)
    metrics = EdgeMetrics()
    try:
        models = EdgeModels(
            steps,
            device=given.device,
            dtype=given.dtype,
            defaults=defaults,
            metrics=metrics,
            controlnets=given.controlnets,
        )
        sharing = sharing_of(
            given.share_profile,
            allowed_loss=given.share_loss,
            most=given.share_group,
            cache_bytes=given.share_cache_bytes,
            metrics=metrics,
        )
        if sharing is not None:
            models.on_gone = sharing.forget
        edge = Edge(given, steps, models, Engine(steps, sharing), metrics, on_demand)
    except BaseException:
        steps.close()
        raise
    metrics.follow("fedkd_open_sessions", "Split sessions that are open.", lambda: len(edge.sessions))
    metrics.follow_all("fedkd_engine", "The step engine's own count.", steps.stats)
    return edge


def _app(edge: Edge, tokens: Any) -> FastAPI:
    given = edge.settings

    @asynccontextmanager
    async def lifespan(_: FastAPI) -> AsyncIterator[None]:
        tasks = [asyncio.create_task(edge.sweep())]
        if given.refresh_s > 0:
            tasks.append(asyncio.create_task(edge.refresh()))
        if edge.cluster is not None:
            await edge.cluster.workload.count()  # before anybody asks: what is not counted cannot be dispatched
            tasks.append(asyncio.create_task(edge.cluster.run()))
        yield
        for task in tasks:
            task.cancel()
        await asyncio.wait(tasks)
        await asyncio.to_thread(edge.close)

    app = FastAPI(
        title="fedkd edge",
        summary="Pictures made by device and edge together, or by the edge alone.",
        version=__version__,
        lifespan=lifespan,
        docs_url=None,
        redoc_url=None,
        responses=ERRORS,
        redirect_slashes=False,
    )
    app.state.edge = edge
    install_handlers(app)
    if edge.cluster is not None:
        app.add_middleware(Crossroads, cluster=edge.cluster)
    app.add_middleware(
        Gate,
        tokens=tokens,
        max_body_bytes=given.max_body_bytes,
        body_timeout_s=given.body_timeout_s,
        send_timeout_s=given.send_timeout_s,
        open_paths=("/healthz", "/readyz", *PAGE_PATHS),
        metrics=edge.metrics,
    )
    app.include_router(model_routes(edge.models, edge.engine, edge.metrics))
    app.include_router(session_routes(edge.models, edge.engine, edge.sessions, edge.metrics))
    app.include_router(image_routes(edge.models, edge.engine, edge.metrics))
    app.include_router(edit_routes(edge.models, edge.engine, edge.metrics))
    app.include_router(page_routes(edge.models))
    if edge.cluster is not None:
        app.include_router(peer_routes(edge.cluster))
    if tokens:
        _name_security(app)
    return app


def _name_security(app: FastAPI) -> None:
    """Say in the OpenAPI description that a bearer token is needed."""
    describe = app.openapi

    def described() -> dict[str, Any]:
        schema = describe()
        schema.setdefault("components", {})["securitySchemes"] = {"token": {"type": "http", "scheme": "bearer"}}
        schema["security"] = [{"token": []}]
        return schema

    app.openapi = described  # type: ignore[method-assign]
