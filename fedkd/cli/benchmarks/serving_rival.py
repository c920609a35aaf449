"""The rival of `fedkd bench serving`: plain diffusers behind FastAPI, one picture after the other."""

from __future__ import annotations

import asyncio
import base64
import io
import json
import os
import subprocess
import sys
import time
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import contextmanager
from typing import Any

from fastapi import FastAPI, Request
from fastapi.responses import JSONResponse, Response, StreamingResponse

START_S = 300.0
CHILD = """
import json, sys
settings = json.loads(sys.stdin.readline())
import torch
torch.set_num_threads(settings.pop("threads"))
import uvicorn
from fedkd.cli.benchmarks.serving_rival import create_rival
port = settings.pop("port")
uvicorn.run(create_rival(**settings), host="127.0.0.1", port=port, log_level="warning", access_log=False)
"""


def create_rival(folder: str, device: str, dtype: str) -> Any:
    """The app: `DiffusionPipeline` behind a lock that serves in the order of arrival.

    It takes the same requests as an edge, answers the same bodies, and shows partial images at the same steps, by
    diffusers' own callback. PNGs are made outside the lock. POST /echo?size=N answers N bytes: what the network costs.
    """
    import torch
    from diffusers import DiffusionPipeline

    pipe = DiffusionPipeline.from_pretrained(
        folder, dtype=getattr(torch, dtype), use_safetensors=True, local_files_only=True
    ).to(device)
    pipe.set_progress_bar_config(disable=True)
    one_at_a_time = asyncio.Lock()
    app = FastAPI(openapi_url=None)

    def draw(asked: dict[str, Any], show: Callable[[Any], None] | None) -> Any:
        wanted = _partial_steps(asked["num_inference_steps"], asked.get("partial_images", 0)) if show else set()

        def after_step(_: Any, place: int, __: Any, tensors: dict[str, Any]) -> dict[str, Any]:
            if place + 1 in wanted:
                assert show is not None
                with torch.no_grad():
                    latents = tensors["latents"] / pipe.vae.config.scaling_factor
                    pixels = pipe.vae.decode(latents, return_dict=False)[0]
                show(pipe.image_processor.postprocess(pixels, output_type="pil")[0])
            return {}

        return pipe(
            asked["prompt"],
            num_inference_steps=asked["num_inference_steps"],
            guidance_scale=asked["guidance_scale"],
            generator=torch.Generator("cpu").manual_seed(asked["seed"]),
            callback_on_step_end=after_step if wanted else None,
            callback_on_step_end_tensor_inputs=["latents"],
        ).images[0]

    async def events(asked: dict[str, Any]) -> AsyncIterator[bytes]:
        loop, shown = asyncio.get_running_loop(), asyncio.Queue[Any]()

        def show(image: Any) -> None:
            loop.call_soon_threadsafe(shown.put_nowait, image)

        async with one_at_a_time:
            drawing = asyncio.create_task(asyncio.to_thread(draw, asked, show))
            drawing.add_done_callback(lambda _: shown.put_nowait(None))
            while (image := await shown.get()) is not None:
                yield _event("image_generation.partial_image", await asyncio.to_thread(_encoded, image))
        yield _event("image_generation.completed", await asyncio.to_thread(_encoded, drawing.result()))

    @app.post("/v1/images/generations")
    async def generate(request: Request) -> Response:
        asked = json.loads(await request.body())
        if asked.get("stream"):
            return StreamingResponse(events(asked), media_type="text/event-stream")
        async with one_at_a_time:
            image = await asyncio.to_thread(draw, asked, None)
        data = await asyncio.to_thread(_encoded, image)
        return JSONResponse({"created": int(time.time()), "data": [{"b64_json": data}]})

    @app.post("/echo")
    async def echo(request: Request, size: int) -> Response:
        await request.body()
        return Response(bytes(size))

    @app.get("/healthz")
    async def healthz() -> Response:
        return JSONResponse({"status": "ok"})

    return app


def _partial_steps(total: int, count: int) -> set[int]:
    """The steps at which an edge shows partial images, too."""
    from fedkd.serving.routes_images import partial_steps

    return partial_steps(total, count)


def _encoded(image: Any) -> str:
    buffer = io.BytesIO()
    image.save(buffer, format="PNG")
    return base64.b64encode(buffer.getvalue()).decode("ascii")


def _event(name: str, data: str) -> bytes:
    return f"event: {name}\ndata: {json.dumps({'b64_json': data})}\n\n".encode()


@contextmanager
def rival_in_process(folder: str, *, device: str, dtype: str, threads: int) -> Iterator[str]:
    """The rival in a process of its own; yields its URL when it answers. LoopbackError when it does not."""
    import httpx

    from fedkd.serving.loopback import LoopbackError, free_port

    port = free_port()
    url = f"http://127.0.0.1:{port}"
    facts = {"folder": folder, "device": device, "dtype": dtype, "threads": threads, "port": port}
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(path for path in sys.path if path)}
    process = subprocess.Popen(
        [sys.executable, "-c", CHILD], stdin=subprocess.PIPE, stdout=subprocess.DEVNULL, env=environment
    )
    try:
        assert process.stdin is not None
        process.stdin.write(json.dumps(facts).encode() + b"\n")
        process.stdin.close()
        deadline = time.monotonic() + START_S
        while True:
            try:
                if httpx.get(f"{url}/healthz", trust_env=False).status_code == 200:
                    break
            except httpx.HTTPError:
                time.sleep(0.1)
            if process.poll() is not None or time.monotonic() > deadline:
                raise LoopbackError(f"the rival did not answer at {url} within {START_S:g} s")
        yield url
    finally:
        process.terminate()
        try:
            process.wait(10)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()
