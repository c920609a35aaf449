"""The real `fedkd serve` in a process of its own, for benchmarks that go in by the front door."""

from __future__ import annotations

import os
import re
import subprocess
import sys
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import httpx

START_S = 300.0


def environment() -> dict[str, str]:
    """This process's environment, for a child that imports what this one does."""
    return {**os.environ, "PYTHONPATH": os.pathsep.join(path for path in sys.path if path)}


@contextmanager
def served_edge(words: Sequence[str], log: Path) -> Iterator[tuple[subprocess.Popen[str], str]]:
    """`fedkd serve WORDS`: yields its process and URL once it is ready, and always ends it; stderr goes to `log`.

    LoopbackError with the edge's own last line when it does not start.
    """
    command = [sys.executable, "-m", "fedkd.cli.main", "serve", *words]
    with log.open("w") as said:
        process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=said, text=True, env=environment())
        try:
            yield process, _url_of(process, log)
        finally:
            process.terminate()
            try:
                process.wait(15)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()


def _url_of(process: subprocess.Popen[str], log: Path) -> str:
    """The URL that the edge says it serves at."""
    from fedkd.serving.loopback import LoopbackError

    impatient = threading.Timer(START_S, process.kill)
    impatient.start()
    try:
        assert process.stdout is not None
        for line in process.stdout:
            if found := re.search(r" at (http://\S+)", line):
                _wait_until_ready(found[1])
                return found[1]
    finally:
        impatient.cancel()
    lines = log.read_text(errors="replace").strip().splitlines() or [f"it said nothing for {START_S:g} s"]
    raise LoopbackError(f"the edge did not start: {lines[-1].removeprefix('error: ')}")


def _wait_until_ready(url: str) -> None:
    transport: Any = httpx.HTTPTransport(retries=20)
    with httpx.Client(transport=transport, trust_env=False, timeout=30) as http:
        http.get(f"{url}/readyz").raise_for_status()
