"""The device's half of a split picture: fetch the denoiser once, do one's steps, exchange hand-offs."""

from __future__ import annotations

import io
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import diffusers
import httpx
import torch
from PIL import Image
from safetensors import SafetensorError
from safetensors.torch import load

from fedkd.inference.denoiser import Job, decode, denoise, hand_off, take_up
from fedkd.inference.handoff import HandOff, HandOffError
from fedkd.models.pipeline import DTYPES
from fedkd.serving.fetch import FetchError, default_cache, fetch_component

Progress = Callable[[int, int], None]
DENOISERS = {"UNet2DConditionModel": "unet", "SD3Transformer2DModel": "transformer"}
DECODERS = {"AutoencoderKL": "vae"}


class EdgeError(ValueError):
    """The edge cannot be reached, refuses, or answers something else than was asked for."""


@dataclass
class SplitResult:
    """A picture that device and edge made together, with who did what and what it cost.

    `latents` are the final ones, (1, C, h, w) on the CPU, or None if they were not asked for. Steps are
    evaluations of the denoiser. Bytes are those of HTTP bodies for this picture; the model's files, fetched
    once, are in `EdgeClient.fetched_bytes`. `network_s` is what neither side spent computing.
    """

    image: Image.Image
    latents: torch.Tensor | None
    prompt: str
    seed: int
    order: str
    device_steps: int
    edge_steps: int
    bytes_up: int
    bytes_down: int
    device_seconds: float
    edge_seconds: float
    total_seconds: float
    scheduler: str
    num_inference_steps: int
    guidance_scale: float
    decoded_by: str

    @property
    def network_s(self) -> float:
        """Seconds of the whole that were spent between the two."""
        return max(0.0, self.total_seconds - self.device_seconds - self.edge_seconds)


class EdgeClient:
    """A device's connection to one edge; use it as a context manager, from one thread."""

    def __init__(
        self,
        url: str,
        *,
        token: str = "",
        cache_dir: Path | None = None,
        device: str = "cpu",
        dtype: str = "float32",
        timeout_s: float = 600.0,
    ) -> None:
        if not url.startswith(("http://", "https://")):
            raise EdgeError(f"edge={url!r} is not a URL; give it as http://host:port")
        if dtype not in DTYPES:
            raise EdgeError(f"dtype={dtype!r} is not known; give one of {', '.join(DTYPES)}")
        headers = {"Authorization": f"Bearer {token}"} if token else {}
        timeout = httpx.Timeout(timeout_s, connect=10.0)
        # trust_env=False: an edge is addressed directly, and device and edge share no proxy
        self._http = httpx.Client(base_url=url, headers=headers, timeout=timeout, trust_env=False)
        self.url, self.device, self.dtype = url, device, dtype
        self.cache = Path(cache_dir) if cache_dir is not None else default_cache()
        self.fetched_bytes = 0
        self._model: dict[str, Any] | None = None
        self._loaded: dict[str, Any] = {}
        self._up = self._down = 0
        self._edge_seconds = 0.0

    def __enter__(self) -> EdgeClient:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """End the connection."""
        self._http.close()

    def model(self, *, again: bool = False) -> dict[str, Any]:
        """What the edge serves: name, version, digest, files, scheduler, resolution, defaults, build."""
        if self._model is None or again:
            described = self._ask("GET", "/v1/model").json()
            if described.get("dtype") != self.dtype:
                raise EdgeError(
                    f"the edge computes in {described.get('dtype')}, this device in {self.dtype}; "
                    "give both the same dtype"
                )
            if self._model is not None and self._model["digest"] != described["digest"]:
                self._loaded.clear()
            self._model = described
        return self._model

    def same_build(self) -> bool:
        """Whether bit-for-bit equality is promised: same torch, diffusers, threads and kind of device."""
        here = {
            "torch": torch.__version__,
            "diffusers": diffusers.__version__,
            "threads": torch.get_num_threads(),
            "device": self.device,
        }
        return self.model().get("build") == here

    def prepare(self, decode: Literal["edge", "device"] = "edge") -> None:
        """Fetch and load what this device needs, so that the first picture does not wait for it."""
        self._component(DENOISERS)
        if decode == "device":
            self._component(DECODERS)

    def generate(
        self,
        prompt: str,
        *,
        num_inference_steps: int | None = None,
        device_steps: int,
        order: Literal["device_first", "edge_first"] = "device_first",
        seed: int = 0,
        guidance_scale: float | None = None,
        scheduler: str | None = None,
        decode: Literal["edge", "device"] = "edge",
        progress: Progress | None = None,
        with_latents: bool = True,
    ) -> SplitResult:
        """Draw one picture with the edge, the device doing `device_steps` evaluations of the denoiser.

        What is None is left to the edge's defaults. `progress(done, total)` counts evaluations of both
        sides. `with_latents=False` saves sending the final latents where the edge decodes. EdgeError says
        what went wrong and what to do.
        """
        self.model()
        if device_steps > 0:
            self._component(DENOISERS)
        vae = self._component(DECODERS) if decode == "device" else None
        began = time.perf_counter()
        self._up = self._down = 0
        self._edge_seconds = 0.0
        plan = {
            "prompt": prompt,
            "num_inference_steps": num_inference_steps,
            "device_steps": device_steps,
            "order": order,
            "seed": seed,
            "guidance_scale": guidance_scale,
            "scheduler": scheduler,
        }
        opened = self._ask("POST", "/v1/sessions", json={k: v for k, v in plan.items() if v is not None})
        session = opened.headers.get("X-Fedkd-Session", "")
        try:
            job = self._take_up(opened.content, progress)
            device_seconds = self._steps(job, device_steps, progress)
            if decode == "edge" or job.step < job.total:
                image, latents = self._give_back(session, job, decode == "edge", with_latents, progress)
            else:
                image, latents = None, job.latents
                self._ask("DELETE", f"/v1/sessions/{session}")
        except BaseException:
            self._forget(session)
            raise
        if vae is not None:
            assert latents is not None
            decoding = time.perf_counter()
            image = _decoded(vae, latents, self.device)
            device_seconds += time.perf_counter() - decoding
        assert image is not None
        return SplitResult(
            image=image,
            latents=latents.cpu() if latents is not None else None,
            prompt=prompt,
            seed=seed,
            order=order,
            device_steps=device_steps,
            edge_steps=job.total - device_steps,
            bytes_up=self._up,
            bytes_down=self._down,
            device_seconds=device_seconds,
            edge_seconds=self._edge_seconds,
            total_seconds=time.perf_counter() - began,
            scheduler=type(job.scheduler).__name__,
            num_inference_steps=int(job.arguments["num_inference_steps"]),
            guidance_scale=float(job.guidance_scale),
            decoded_by=decode,
        )

    def _take_up(self, data: bytes, progress: Progress | None) -> Job:
        try:
            found = HandOff.from_bytes(data)
            if found.model != self.model()["digest"] and found.model != self.model(again=True)["digest"]:
                raise EdgeError("the edge's model changed while this picture was opened; try again")
            if found.conditions is not None:
                self._component(DENOISERS)  # anew, where the model has changed
            job = take_up(found, device=self.device)
        except HandOffError as error:
            raise EdgeError(f"the edge at {self.url} sent a hand-off that cannot be used: {error}") from error
        if progress:
            progress(job.step, job.total)
        return job

    def _steps(self, job: Job, device_steps: int, progress: Progress | None) -> float:
        if device_steps == 0:
            return 0.0
        began = time.perf_counter()
        denoise(self._component(DENOISERS), job, job.step + device_steps, progress)
        return time.perf_counter() - began

    def _give_back(
        self, session: str, job: Job, with_picture: bool, with_latents: bool, progress: Progress | None
    ) -> tuple[Image.Image | None, torch.Tensor | None]:
        wanted = "latents" if not with_picture else "both" if with_latents else "png"
        data = hand_off(job, self.model()["digest"], with_conditions=False).to_bytes()
        answer = self._ask(
            "POST", f"/v1/sessions/{session}/handoff", params={"result": wanted}, content=data
        ).content
        if progress:
            progress(job.total, job.total)
        try:
            if wanted == "png":
                return _opened(answer), None
            tensors = load(answer)
            return _opened(tensors["png"].numpy().tobytes()) if with_picture else None, tensors["latents"]
        except (SafetensorError, KeyError, OSError) as error:
            raise EdgeError(f"the edge at {self.url} sent a picture that cannot be read") from error

    def _component(self, known: dict[str, str]) -> Any:
        """Load the component whose class is one of `known`, fetching what is not in the cache."""
        model = self.model()
        for made, name in known.items():
            if model.get("classes", {}).get(name) != made:
                continue
            if name not in self._loaded:
                self._loaded[name] = self._load(model, made, name)
            return self._loaded[name]
        raise EdgeError(f"the edge's model has none of {', '.join(known)}; this device cannot take part")

    def _load(self, model: dict[str, Any], made: str, name: str) -> Any:
        try:
            folder, fetched = fetch_component(self._http, model, name, self.cache)
        except FetchError as error:
            raise EdgeError(f"cannot fetch the model from {self.url}: {error}") from error
        except httpx.HTTPError as error:
            raise self._unreachable(error) from error
        except (KeyError, TypeError) as error:
            raise EdgeError(f"{self.url} describes its model in a form this device cannot read") from error
        self.fetched_bytes += fetched
        network = getattr(diffusers, made).from_pretrained(
            str(folder), torch_dtype=DTYPES[self.dtype], use_safetensors=True, local_files_only=True
        )
        return network.requires_grad_(False).eval().to(self.device)

    def _ask(self, method: str, path: str, **arguments: Any) -> httpx.Response:
        try:
            response = self._http.request(method, path, **arguments)
        except httpx.HTTPError as error:
            raise self._unreachable(error) from error
        self._up += len(response.request.content)
        self._down += len(response.content)
        if response.is_success:
            self._edge_seconds += float(response.headers.get("X-Fedkd-Edge-Seconds", 0.0))
            return response
        try:
            reason = response.json()["error"]["message"]
        except (ValueError, KeyError, TypeError):
            reason = f"HTTP {response.status_code}; is this a fedkd edge?"
        hint = "; give its --token" if response.status_code == 401 else ""
        raise EdgeError(f"the edge at {self.url} refuses: {reason}{hint}")

    def _unreachable(self, error: httpx.HTTPError) -> EdgeError:
        reason = str(error) or type(error).__name__
        return EdgeError(
            f"cannot reach the edge at {self.url} ({reason}); start one with `fedkd serve` or correct the URL"
        )

    def _forget(self, session: str) -> None:
        """Tell the edge that nothing more will come; it does not matter if it cannot be told."""
        try:
            self._http.delete(f"/v1/sessions/{session}", timeout=2.0)
        except httpx.HTTPError:
            return


def _opened(data: bytes) -> Image.Image:
    image = Image.open(io.BytesIO(data))
    image.load()
    return image


def _decoded(vae: Any, latents: torch.Tensor, device: str) -> Image.Image:
    return decode(vae, latents.to(device))
