"""An edge on this machine in a process of its own, for as long as a block of code needs it."""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import httpx

# The child takes its settings from stdin, so that no token shows in the list of processes.
CHILD = """
import json, sys
settings = json.loads(sys.stdin.readline())
import torch
torch.set_num_threads(settings.pop("threads"))
import uvicorn
from fedkd.inference.allocator import keep_freed_memory
from fedkd.serving.connections import server_config
from fedkd.serving.edge import create_app
keep_freed_memory()
place = {name: settings.pop(name) for name in ("host", "port", "header_timeout_s")}
try:
    app = create_app(settings.pop("checkpoint"), **settings)
except ValueError as error:
    sys.exit(f"error: {error}")
uvicorn.Server(server_config(app, **place)).run()
"""


class LoopbackError(ValueError):
    """The edge's process did not come up."""


def free_port(host: str = "127.0.0.1") -> int:
    """A TCP port that nobody listens on at the moment."""
    with socket.socket() as probe:
        probe.bind((host, 0))
        return int(probe.getsockname()[1])


@contextmanager
def serve_in_process(
    checkpoint: str,
    *,
    host: str = "127.0.0.1",
    port: int = 0,
    threads: int | None = None,
    start_timeout_s: float = 120.0,
    header_timeout_s: float = 20.0,
    **settings: Any,
) -> Iterator[str]:
    """Serve `checkpoint` from a separate process; yields the URL when it answers, and always ends it.

    `settings` are those of `fedkd.serving.edge.create_app`, as far as JSON can say them. `threads` is the number of
    torch threads (default: this process's own, so that both sides compute the same bits). LoopbackError with the
    edge's own last line when it does not come up.
    """
    import torch

    port = port or free_port(host)
    facts = {
        "checkpoint": str(checkpoint),
        "host": host,
        "port": port,
        "header_timeout_s": header_timeout_s,
        "threads": torch.get_num_threads() if threads is None else threads,
        **settings,
    }
    url = f"http://{host}:{port}"
    with tempfile.TemporaryFile() as said:
        process = subprocess.Popen(
            [sys.executable, "-c", CHILD],
            stdin=subprocess.PIPE,
            stdout=said,
            stderr=said,
            env={**os.environ, "PYTHONPATH": os.pathsep.join(path for path in sys.path if path)},
        )
        try:
            assert process.stdin is not None
            process.stdin.write(json.dumps(facts).encode() + b"\n")
            process.stdin.close()
            _wait_until_up(process, url, start_timeout_s, said)
            yield url
        finally:
            process.terminate()
            try:
                process.wait(10)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()


def _wait_until_up(process: subprocess.Popen[bytes], url: str, timeout_s: float, said: Any) -> None:
    deadline = time.monotonic() + timeout_s
    with httpx.Client(trust_env=False, timeout=5.0) as client:
        while time.monotonic() < deadline:
            if process.poll() is not None:
                said.seek(0)
                lines = said.read().decode(errors="replace").strip().splitlines() or ["no reason given"]
                raise LoopbackError(f"the edge did not start: {lines[-1].removeprefix('error: ')}")
            try:
                if client.get(f"{url}/healthz").status_code == 200:
                    return
            except httpx.HTTPError:
                time.sleep(0.1)
    raise LoopbackError(f"the edge did not answer at {url} within {timeout_s:g} seconds")
