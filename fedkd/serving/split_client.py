"""The device's side of a split picture as a protocol without I/O: what is asked next, given what came."""

from __future__ import annotations

import io
import json
import secrets
import threading
import time
from typing import Any

import torch
from PIL import Image
from safetensors import SafetensorError
from safetensors.torch import load

from fedkd.inference.denoiser import Job, decode, denoise, hand_off, take_up
from fedkd.inference.handoff import HandOff, HandOffError
from fedkd.serving.device_model import first_line
from fedkd.serving.device_side import DeviceSide
from fedkd.serving.fallback import DeviceCannot, Notice, check, one_after_another, others_first, patiently
from fedkd.serving.fetch import FetchError
from fedkd.serving.protocol import Answer, Ask, EdgeError, EdgeLost, Steps, Work
from fedkd.serving.split_choice import choose_split
from fedkd.serving.split_request import Progress, SplitResult, Wish

Drawn = tuple[Image.Image | None, torch.Tensor | None]  # the picture, and its final latents (1, C, h, w)
STEP_FAILURES = (ArithmeticError, AttributeError, LookupError, MemoryError, RuntimeError, TypeError, ValueError)


class Picture:
    """One picture in the making. `draw()` is the whole protocol; drive it with a connection.

    When an edge is lost the picture goes on at another from the last hand-off, which the device holds; when
    the device cannot do its part the edge does it, unless the plan was to keep the picture from the edge.
    """

    def __init__(self, side: DeviceSide, wish: Wish, progress: Progress | None, notice: Notice | None) -> None:
        self.side, self.wish, self.local = side, wish, side.local
        self._progress, self._notice = progress, notice
        self.notes: list[str] = []
        self.reasons: tuple[str, ...] = ()
        self.order: str = wish.order or "device_first"
        self.device_steps, self.decoder = wish.device_steps, wish.decode
        self.edge, self.session = "", ""
        self.digest, self.features = "", ()
        self.took_part: list[str] = []
        self.up = self.down = self.own_steps = self._done = 0
        self.edge_seconds = self.device_seconds = self.began = 0.0
        self.exact: bool | None = None
        self.same_build = True
        self._opened, self._condition = b"", b""
        self.size, self.control_digest = (0, 0), ""  # (width, height); what this picture is steered through
        self._networks: dict[str, Any] = {}
        self._over = threading.Event()
        self._callers_error: BaseException | None = None

    def draw(self) -> Steps[SplitResult]:
        """Open, do the device's steps, hand back, decode. EdgeError when no edge and no way is left."""
        try:
            yield from one_after_another(
                self.side.from_current(),
                self._open,
                patience_s=self.side.patience_s,
                persist=False,
                notice=self._note,
            )
            image, latents = yield from self._make()
            if self.decoder == "device":
                image = yield Work(lambda: self._decode(latents))
        except GeneratorExit:
            raise
        except BaseException:
            self._over.set()
            if self.session:
                yield Ask(self.edge, "DELETE", f"/v1/sessions/{self.session}", in_passing=True)
            raise
        return self._result(image, latents)

    # -- opening

    def _open(self, edge: str) -> Steps[None]:
        for again in (False, True):  # what the edge said of its model may be out of date
            now = again or self.wish.device_steps == "auto"  # the planner wants the load of this moment
            model = yield from self.side.describe(edge, name=self.wish.model, again=now)
            self.features = model.get("features", ())
            try:
                yield from self._extract(edge, model)
                yield from self._make_ready(edge, model)
            except FetchError:
                if again:
                    raise
                continue
            self.began = self.began or time.perf_counter()
            answer = yield from self._ask_session(edge, self.order, int(self.device_steps))
            try:
                found = HandOff.from_bytes(answer.content)
            except HandOffError as error:
                raise EdgeLost(f"the edge at {edge} sent a hand-off that cannot be used: {error}") from error
            if found.model != model["digest"]:  # the edge took a new version between its two answers
                model = yield from self.side.describe(edge, name=self.wish.model, digest=found.model)
                opened = (self.order, self.device_steps)
                yield from self._make_ready(edge, model)
                if (self.order, self.device_steps) != opened:
                    model = {**model, "digest": ""}  # the session's split is not what this version allows
            if found.model == model["digest"]:
                break
            yield Ask(edge, "DELETE", f"/v1/sessions/{self.session}", in_passing=True)
        else:
            raise EdgeLost(f"the model of the edge at {edge} changes too fast; try again")
        self.digest, self._opened = str(model["digest"]), answer.content
        self._take_up(found)
        self.side.current = edge
        self.same_build = self.side.same_build(model)

    def _extract(self, edge: str, model: dict[str, Any]) -> Steps[None]:
        """Make the condition of the source, once; EdgeError when this model takes none of its kind."""
        wanted = self.wish.condition
        if wanted is None:
            return
        control = self._control_of(edge, model)
        if self.control_digest not in ("", control) and self.own_steps:
            raise EdgeLost(f"the edge at {edge} has another ControlNet than this picture was begun with")
        height, width = model["resolution"]
        if not self._condition or self.size != (width, height):
            began, self.size = time.perf_counter(), (int(width), int(height))
            self._condition = yield Work(lambda: wanted.packed(self.size))
            self.device_seconds += time.perf_counter() - began
        self.control_digest = control

    def _control_of(self, edge: str, model: dict[str, Any]) -> str:
        """The digest of the ControlNet at `edge` for this picture's condition."""
        assert self.wish.condition is not None
        kind, known = self.wish.condition.kind, model.get("controls") or {}
        if kind not in known:
            has = f"takes {', '.join(known)}" if known else "has no ControlNet"
            raise EdgeError(f"condition={kind} does not steer the model of the edge at {edge}, which {has}")
        return str(known[kind].get("digest"))

    def _make_ready(self, edge: str, model: dict[str, Any]) -> Steps[None]:
        """Fetch and load what the device's part takes; without it the edge does that part."""
        self.order, self.device_steps = self.wish.order or "device_first", self.wish.device_steps
        self.decoder = self.wish.decode
        if self.wish.device_steps == "auto":
            try:
                chosen = yield from choose_split(self.side, edge, model, self.wish)
                self.order, self.device_steps = chosen.order, chosen.device_steps
                self.reasons = chosen.reasons
            except DeviceCannot as error:
                self._leave_to_edge(error)
                self.device_steps = 0
        try:
            if int(self.device_steps) > 0:
                kind = self.wish.condition.kind if self.wish.condition else ""
                steered = self.local.steered(edge, model, kind) if kind else self.local.denoiser(edge, model)
                self._networks["denoiser"] = yield from steered
            if self.decoder == "device":
                self._networks["decoder"] = yield from self.local.decoder(edge, model)
        except DeviceCannot as error:
            self._leave_to_edge(error)
            self.order, self.device_steps, self.decoder = "device_first", 0, "edge"

    def _ask_session(self, edge: str, order: str, device_steps: int) -> Steps[Answer]:
        body, watch = self.wish.body(order, device_steps), ""
        if self.wish.condition is not None:
            body["condition"] = self.wish.condition.body(self._condition)
        if "wire" in self.features:
            body |= {"wire": self.wish.wire, "exact": self.wish.exact}
        elif self.wish.wire != "exact":
            raise EdgeLost(f"the edge at {edge} knows no wire form but exact; give wire='exact'")
        if "events" in self.features:
            body["id"] = secrets.token_hex(16)
            self.edge, self.session = edge, body["id"]
            watch = self._events(f"/v1/sessions/{body['id']}") if order == "edge_first" else ""
        ask = Ask(edge, "POST", "/v1/sessions", json=body, watch=watch, on_event=self._hear)
        return (yield from self._begin_session(edge, ask))

    def _begin_session(self, edge: str, ask: Ask) -> Steps[Answer]:
        answer = yield from self._ask(ask)
        self.edge, self.session = edge, answer.headers.get("x-fedkd-session", "")
        self.took_part += [edge] * (edge not in self.took_part[-1:])
        return answer

    def _take_up(self, found: HandOff) -> None:
        try:
            self.job = take_up(found, device=self.local.device)
        except HandOffError as error:
            raise EdgeLost(f"the edge at {self.edge} sent a hand-off that cannot be used: {error}") from error
        if self.wish.condition is not None and self.job.conditions is not None:
            facts = self.size, self.job.rows, self.local.device
            self.job.conditions |= self.wish.condition.told(self._condition, *facts)
        self._tell(self.job.step, self.job.total)

    # -- the device's steps, and what follows

    def _make(self) -> Steps[Drawn]:
        if int(self.device_steps) > 0:
            try:
                yield Work(self._own_steps)
            except DeviceCannot as error:
                self._leave_to_edge(error)
                self.own_steps, self.decoder = 0, "edge"
                self._take_up(HandOff.from_bytes(self._opened))
                return (yield from self._elsewhere(self.side.from_current()))
        if self.decoder == "device" and self.job.step == self.job.total:
            yield Ask(self.edge, "DELETE", f"/v1/sessions/{self.session}", in_passing=True)
            return None, self.job.latents
        try:
            return (yield from patiently(self._hand_back, self.side.patience_s))
        except EdgeLost as lost:
            order = others_first(self.side.edges, self.edge, lost)
            self._note(f"{lost}; going on from step {self.job.step} of {self.job.total} at {order[0]}")
            return (yield from self._elsewhere(order))

    def _own_steps(self) -> None:
        began = time.perf_counter()
        try:
            denoise(self._networks["denoiser"], self.job, self.job.step + int(self.device_steps), self._tell)
            if not torch.isfinite(self.job.latents).all():
                raise DeviceCannot(f"this device's latents are not finite in {self.local.dtype}")
        except DeviceCannot:
            raise
        except STEP_FAILURES as error:
            if error is self._callers_error:
                raise
            raise DeviceCannot(f"this device cannot run its steps: {first_line(error)}") from error
        self.device_seconds += time.perf_counter() - began
        self.own_steps = int(self.device_steps)

    def _elsewhere(self, edges: list[str]) -> Steps[Drawn]:
        return (
            yield from one_after_another(
                edges, self._go_on, patience_s=self.side.patience_s, persist=True, notice=self._note
            )
        )

    def _go_on(self, edge: str) -> Steps[Drawn]:
        """Have `edge` take the picture from where it stands: with the embeddings, or by opening it anew there.

        Opening anew costs no step either: the edge is told that the device does the steps already done.
        """
        model = yield from self.side.describe(edge, name=self.wish.model, again=True)
        self.features = model.get("features", ())
        steered = self.wish.condition is not None  # then it is opened anew: a hand-off carries no condition
        if steered and self._control_of(edge, model) != self.control_digest:
            raise EdgeLost(f"the edge at {edge} has another ControlNet than this picture was begun with")
        if "resume" in self.features and self.job.conditions is not None and not steered:
            yield from patiently(lambda: self._resume(edge), self.side.patience_s)
        elif model["digest"] == self.digest:
            yield from self._ask_session(edge, "device_first", self.job.step)
        else:
            raise EdgeLost(f"the edge at {edge} serves another model than the one this picture was begun with")
        self.side.current = edge
        self.same_build &= self.side.same_build(model)
        return (yield from patiently(self._hand_back, self.side.patience_s))

    def _resume(self, edge: str) -> Steps[Answer]:
        params = {"order": "device_first", "device_steps": str(self.job.step), "wire": self.wish.wire}
        params |= {"exact": str(self.wish.exact).lower()}
        params |= {"deadline_s": str(self.wish.deadline_s)} if self.wish.deadline_s else {}
        data = hand_off(self.job, self.digest, with_conditions=True).to_bytes()
        try:
            return (
                yield from self._begin_session(
                    edge, Ask(edge, "POST", "/v1/sessions/resume", content=data, params=params)
                )
            )
        except EdgeLost:
            raise
        except EdgeError as error:  # a refusal of one edge is not the others'
            raise EdgeLost(str(error)) from error

    def _hand_back(self) -> Steps[Drawn]:
        with_picture = self.decoder == "edge"
        wanted = "latents" if not with_picture else "both" if self.wish.with_latents else "png"
        handed = hand_off(self.job, self.digest, with_conditions=False)
        data = handed.to_bytes(form=self.wish.wire)
        path = f"/v1/sessions/{self.session}"
        watch = self._events(path) if "events" in self.features else ""
        answer = yield from self._ask(Ask(
            self.edge, "POST", f"{path}/handoff", params={"result": wanted}, content=data, watch=watch,
            on_event=self._hear,
        ))  # fmt: skip
        found: Drawn
        try:
            if wanted == "png":
                found = _opened(answer.content), None
            else:
                tensors = load(answer.content)
                picture = _opened(tensors["png"].numpy().tobytes()) if with_picture else None
                found = picture, tensors["latents"]
        except (SafetensorError, KeyError, OSError, SyntaxError, ValueError) as error:
            raise EdgeLost(f"the edge at {self.edge} sent a picture that cannot be read") from error
        self.session = ""
        self._tell(self.job.total, self.job.total)
        return found

    # -- small parts

    def _ask(self, ask: Ask) -> Steps[Answer]:
        answer = yield ask
        self.up += answer.sent_bytes
        self.down += len(answer.content)
        check(ask.edge, answer)
        if "x-fedkd-exact" in answer.headers:
            self.exact = answer.headers["x-fedkd-exact"] == "true" and self.exact is not False
        try:
            self.edge_seconds += float(answer.headers.get("x-fedkd-edge-seconds", 0.0))
        except ValueError as error:
            raise EdgeLost(f"the edge at {ask.edge} says nonsense of its seconds") from error
        return answer

    def _events(self, session: str) -> str:
        """Where the edge tells of its steps; empty when nobody listens. Without `wait_s` it could hold us up."""
        return f"{session}/events?wait_s=0" if self._progress is not None else ""

    def _hear(self, _: str, data: str) -> None:
        """Progress of the edge's half, from its events; what cannot be read is passed over."""
        try:
            said = json.loads(data)
            step, total = int(said["step"]), int(said["total"])
        except (ValueError, KeyError, TypeError):
            return
        if step > self._done:  # an edge first repeats what it said last, before the device's steps
            self._tell(step, total)

    def _tell(self, done: int, total: int) -> None:
        if self._over.is_set():
            raise RuntimeError("the picture was given up")
        self._done = done
        if self._progress is not None:
            try:
                self._progress(done, total)
            except BaseException as error:
                self._callers_error = error
                raise

    def _note(self, text: str) -> None:
        self.notes.append(text)
        if self._notice is not None:
            self._notice(text)

    def _leave_to_edge(self, error: DeviceCannot) -> None:
        if self.order == "edge_first" and self.wish.decode == "device" and self.device_steps:
            raise EdgeError(
                f"{error}; the edge could draw it all, but would see the picture that edge_first with "
                "decode=device keeps from it: give decode=edge to allow that"
            ) from error
        self._note(f"{error}; the edge does the device's part")

    def _decode(self, latents: torch.Tensor | None) -> Image.Image:
        assert latents is not None
        began = time.perf_counter()
        image = decode(self._networks["decoder"], latents.to(self.local.device))
        self.device_seconds += time.perf_counter() - began
        return image

    def _result(self, image: Image.Image | None, latents: torch.Tensor | None) -> SplitResult:
        assert image is not None
        job: Job = self.job
        return SplitResult(
            image=image,
            latents=latents.cpu() if latents is not None else None,
            prompt=self.wish.prompt,
            seed=self.wish.seed,
            order=self.order,
            device_steps=self.own_steps,
            edge_steps=job.total - self.own_steps,
            bytes_up=self.up,
            bytes_down=self.down,
            device_seconds=self.device_seconds,
            edge_seconds=self.edge_seconds,
            total_seconds=time.perf_counter() - self.began,
            model_digest=self.digest,
            scheduler=type(job.scheduler).__name__,
            num_inference_steps=int(job.arguments["num_inference_steps"]),
            guidance_scale=float(job.guidance_scale),
            decoded_by=self.decoder,
            edges=tuple(self.took_part),
            notes=tuple(self.notes),
            reasons=self.reasons,
            wire=self.wish.wire,
            exact=self.exact,
            same_build=self.same_build,
            device_checkpoint=self.local.own_name if self.own_steps else "",
            condition=self.wish.condition.kind if self.wish.condition else "",
            condition_bytes=len(self._condition),
            device_profile=self.side.device_profile,
            edge_profile=self.side.edge_profile,
        )


def _opened(data: bytes) -> Image.Image:
    image = Image.open(io.BytesIO(data))
    image.load()
    return image
