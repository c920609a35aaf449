"""The models an edge serves, by name; a new version takes over while what was begun ends on the old one."""

from __future__ import annotations

import json
import logging
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch

from fedkd.checkpoints.manifest import MANIFEST_NAME, Manifest
from fedkd.data.condition_maps import KINDS
from fedkd.inference.denoiser import encode
from fedkd.inference.schedulers import scheduler_class
from fedkd.inference.step_engine import StepEngine
from fedkd.models.controlnet_folder import find_controlnet
from fedkd.models.pipeline import denoiser_of, load_pipeline
from fedkd.models.source import ModelError
from fedkd.serving.components import ComponentFile, component_files, model_digest
from fedkd.serving.controls import controls_for
from fedkd.serving.errors import EdgeFault
from fedkd.serving.metrics import EdgeMetrics
from fedkd.serving.served import Defaults, Served
from fedkd.serving.sources import Brought, Source

log = logging.getLogger("fedkd.serving")
MIN_WAIT_S, MAX_WAIT_S = 60.0, 3600.0


@dataclass(frozen=True)
class Refused:
    """A version that could not be served, and when it is tried again."""

    tag: str
    wait_s: float
    until: float


class EdgeModels:
    """Served models by name, the first one being the default; safe to use from several threads."""

    def __init__(
        self,
        steps: StepEngine,
        *,
        device: str = "cpu",
        dtype: str = "float32",
        defaults: Defaults | None = None,
        metrics: EdgeMetrics | None = None,
        controlnets: Sequence[str] = (),
    ) -> None:
        self.controlnets = list(controlnets)
        self.steps, self.device, self.dtype = steps, device, dtype
        self.defaults, self.metrics = defaults or Defaults(), metrics
        scheduler_class(self.defaults.scheduler)
        self.on_gone: Callable[[Served], None] = lambda served: None  # told of a version whose last user has ended
        self._current: dict[str, Served] = {}
        self._retired: list[Served] = []
        self._sources: dict[str, Source] = {}
        self._refused: dict[str, Refused] = {}
        self._made = 0
        self._lock = threading.RLock()
        self._swapping = threading.Lock()

    def add(self, name: str, source: Source, *, version: str = "") -> Served:
        """Serve `name` from `source`; ModelError, SchedulerError or CheckpointError when it cannot be."""
        self._sources[name] = source
        return self.swap(name, source.bring(), version=version)

    def swap(self, name: str, brought: Brought, *, version: str = "") -> Served:
        """Serve `name` from this folder from now on; requests and sessions that were begun end on the old version.

        Nothing changes when it cannot be loaded (ModelError, SchedulerError).
        """
        with self._swapping:
            try:
                made = self._load(name, brought, version)
            except BaseException:
                brought.release()
                raise
            with self._lock:
                before = self._current.get(name)
                self.steps.add_model(made.key, denoiser_of(made.pipe))
                for control in made.controls.values():
                    self.steps.add_model(control.key, control.denoiser)
                self._current[name] = made
                if before is not None:
                    before.retired = True
                    self._retired.append(before)
            if before is not None:
                log.info("%s is version %s now, after %s", name, made.version, before.version)
                self._let_go(before)
            return made

    def check_controls(self) -> None:
        """ModelError for a ControlNet that fits none of the served models."""
        held = [control.kind for served in self.current() for control in served.controls.values()]
        for given in self.controlnets:
            if self._current and find_controlnet(given, KINDS).kind not in held:
                raise ModelError(f"controlnet={given} was made for none of {', '.join(self.names())}; leave it out")

    def remove(self, name: str) -> None:
        """Serve `name` no longer; what was begun ends on it."""
        with self._lock:
            before = self._current.pop(name, None)
            self._sources.pop(name, None)
            if before is None:
                return
            before.retired = True
            self._retired.append(before)
        self._let_go(before)

    def refresh(self) -> list[str]:
        """Bring newer versions of what is served; names that changed. What cannot be brought stays as it was."""
        changed = []
        for name, source in list(self._sources.items()):
            if not source.moves:
                continue
            tag = ""
            try:
                tag = source.tag()
                if name not in self._current or tag == self._current[name].tag or self._too_soon(name, tag):
                    continue
                self.swap(name, source.bring())
            except (ValueError, OSError) as error:
                log.warning("the newer version of %s cannot be served: %s", name, error)
                if tag:
                    self._refuse(name, tag)
                self._count_swap(name, "refused")
                continue
            self._refused.pop(name, None)
            changed.append(name)
            self._count_swap(name, "swapped")
        return changed

    def names(self) -> list[str]:
        """Names of the served models, the default one first."""
        with self._lock:
            return list(self._current)

    def sources(self) -> dict[str, Source]:
        """Where each name comes from."""
        with self._lock:
            return dict(self._sources)

    def current(self) -> list[Served]:
        """The served versions."""
        with self._lock:
            return list(self._current.values())

    def find(self, name: str | None = None, digest: str | None = None) -> Served:
        """The served model of a name (None or '': the default), or of a digest; EdgeFault 404 when there is none."""
        with self._lock:
            if digest:
                for served in [*self._current.values(), *self._retired]:
                    if served.digest == digest and name in (None, "", served.name):
                        return served
                raise EdgeFault(
                    404, f"no model of digest {digest[:12]!r} is served here", param="digest", code="model_not_found"
                )
            found = self._current.get(name) if name else next(iter(self._current.values()), None)
            if found is None:
                known = ", ".join(repr(each) for each in self._current)
                raise EdgeFault(
                    404, f"no model {name!r}; this edge serves {known}", param="model", code="model_not_found"
                )
            return found

    def take(self, name: str | None = None, digest: str | None = None) -> Served:
        """`find`, kept in memory until `release`."""
        with self._lock:
            served = self.find(name, digest)
            served.users += 1
            return served

    def release(self, served: Served) -> None:
        """End one use of `take`."""
        with self._lock:
            served.users -= 1
        self._let_go(served)

    @contextmanager
    def use(self, name: str | None = None, digest: str | None = None) -> Iterator[Served]:
        """`take` for as long as a block of code runs."""
        served = self.take(name, digest)
        try:
            yield served
        finally:
            self.release(served)

    @contextmanager
    def keep(self, served: Served) -> Iterator[None]:
        """Keep a version in memory for as long as a block of code runs; EdgeFault 409 when it is gone already."""
        with self._lock:
            if served not in self._current.values() and served not in self._retired:
                raise EdgeFault(409, "the edge serves another version now; ask again", code="model_changed")
            served.users += 1
        try:
            yield
        finally:
            self.release(served)

    def component(self, sha256: str) -> Path | None:
        """The file of this digest, of a served version or of one that sessions still use."""
        with self._lock:
            for served in [*self._current.values(), *self._retired]:
                for file in served.files:
                    if file.sha256 == sha256:
                        return served.folder / file.component / file.name
                for control in served.controls.values():
                    for file in control.files:
                        if file.sha256 == sha256:
                            return control.folder / file.name
        return None

    def users(self) -> list[tuple[Served, int]]:
        """Every version in memory with its users."""
        with self._lock:
            return [(served, served.users) for served in [*self._current.values(), *self._retired]]

    def load(self, served: Served) -> dict[str, Any]:
        """The engine at this moment: `jobs` in hand, and `row_s`, the least seconds of a row so far (None: none)."""
        stats = self.steps.stats()
        seen = [seconds[min(seconds)] for seconds in self.calibration(served).values() if seconds]
        return {"jobs": int(stats["running"] + stats["waiting"]), "row_s": min(seen, default=None)}

    def calibration(self, served: Served) -> dict[str, dict[int, float]]:
        """Seconds of a row by rows of a forward, by form, as the traffic of this version has shown it."""
        try:
            return self.steps.calibration(served.key)
        except ValueError:  # a version whose last job has ended
            return {}

    def close(self) -> None:
        """Give all folders free."""
        with self._lock:
            for served in [*self._current.values(), *self._retired]:
                served.release_files()
            self._current.clear()
            self._retired.clear()

    def _let_go(self, served: Served) -> None:
        with self._lock:
            if served.users or served not in self._retired:
                return
            self._retired.remove(served)
        for key in (served.key, *(control.key for control in served.controls.values())):
            self.steps.remove_model(key)
        self.on_gone(served)
        served.release_files()

    def _load(self, name: str, brought: Brought, version: str) -> Served:
        folder = brought.folder
        told = _manifest(folder)
        defaults = Defaults(**{**asdict(self.defaults), **(told.sampling if told else {})})
        pipe: Any = load_pipeline(str(folder), device=self.device, dtype=self.dtype, scheduler=defaults.scheduler)
        files = component_files(folder)
        self._share(pipe, files)
        digest = model_digest(files)
        # On the engine's thread, since it alone uses the accelerator.
        conditions = self.steps.call(lambda: encode(pipe, "", 1.0), admitted=True).result()
        self._made += 1
        key, network = f"{name}#{self._made}", denoiser_of(pipe)
        fits = getattr(pipe, "unet", None) is not None
        controls = controls_for(network, self.controlnets, key, device=self.device, dtype=self.dtype) if fits else {}
        return Served(
            name=name,
            version=version or (told.version if told else ""),
            digest=digest,
            folder=folder,
            pipe=pipe,
            index=json.loads((folder / "model_index.json").read_text(encoding="utf-8")),
            files=files,
            defaults=defaults,
            dtype=self.dtype,
            device=self.device,
            tag=brought.tag,
            release_files=brought.release,
            condition_shapes={key: tuple(value.shape[1:]) for key, value in conditions.items()},
            key=key,
            controls=controls,
        )

    def _share(self, pipe: Any, files: list[ComponentFile]) -> None:
        """Let equal text encoders and VAEs of several versions be one in memory."""
        wanted = _by_component(files)
        for other in self.current():
            held = _by_component(other.files)
            for name, module in list(pipe.components.items()):
                same = name in wanted and wanted[name] == held.get(name)
                if same and isinstance(module, torch.nn.Module) and module is not denoiser_of(pipe):
                    pipe.register_modules(**{name: getattr(other.pipe, name)})

    def _too_soon(self, name: str, tag: str) -> bool:
        refused = self._refused.get(name)
        return refused is not None and refused.tag == tag and time.monotonic() < refused.until

    def _refuse(self, name: str, tag: str) -> None:
        """A version that failed is tried again ever more rarely: the network may have, or it is broken for good."""
        before = self._refused.get(name)
        wait_s = min(2 * before.wait_s, MAX_WAIT_S) if before and before.tag == tag else MIN_WAIT_S
        self._refused[name] = Refused(tag, wait_s, time.monotonic() + wait_s)

    def _count_swap(self, name: str, outcome: str) -> None:
        if self.metrics is not None:
            self.metrics.swaps.labels(name, outcome).inc()


def _by_component(files: list[ComponentFile]) -> dict[str, set[tuple[str, str]]]:
    found: dict[str, set[tuple[str, str]]] = {}
    for file in files:
        found.setdefault(file.component, set()).add((file.name, file.sha256))
    return found


def _manifest(folder: Path) -> Manifest | None:
    path = folder / MANIFEST_NAME
    return Manifest.from_json(path.read_text("utf-8")) if path.is_file() else None
