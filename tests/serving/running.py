"""Edges for tests: the service on a real socket of this process, and what a device does to a hand-off."""

from __future__ import annotations

import socket
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import httpx
import uvicorn

from fedkd.inference.denoiser import denoise, hand_off, take_up
from fedkd.inference.handoff import HandOff
from fedkd.serving.connections import server_config


@contextmanager
def running(app: Any, port: int = 0, **settings: Any) -> Iterator[httpx.Client]:
    """The app behind uvicorn on a loopback port (0: a free one), and a client of it."""
    with socket.create_server(("127.0.0.1", port)) as listener:
        server = uvicorn.Server(server_config(app, lifespan="on", **settings))
        thread = threading.Thread(target=server.run, kwargs={"sockets": [listener]})
        thread.start()
        try:
            assert until(lambda: server.started)
            url = f"http://127.0.0.1:{listener.getsockname()[1]}"
            with httpx.Client(base_url=url, trust_env=False, timeout=60) as client:
                yield client
        finally:
            server.should_exit = True
            thread.join(30)
            assert not thread.is_alive()


def until(true: Callable[[], Any], limit_s: float = 20.0) -> Any:
    """Wait for something that happens in another thread; what it was at last."""
    deadline = time.monotonic() + limit_s
    while not (found := true()) and time.monotonic() < deadline:
        time.sleep(0.01)
    return found


def stepped(pipe: Any, data: bytes, steps: int, *, conditions: Any = None, with_conditions: bool = False) -> bytes:
    """A hand-off after `steps` more steps by a device that holds the network of `pipe`."""
    found = HandOff.from_bytes(data)
    job = denoise(pipe.unet, take_up(found, conditions=conditions), found.step + steps)
    return hand_off(job, found.model, with_conditions=with_conditions).to_bytes()


def error_of(answer: httpx.Response) -> dict[str, Any]:
    """The error in OpenAI's form that an answer is."""
    error: dict[str, Any] = answer.json()["error"]
    assert set(error) == {"message", "type", "param", "code"}
    return error
