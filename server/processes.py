"""Flower's processes on this machine: the app that they run, their environment, starting, watching and ending them."""

from __future__ import annotations

import contextlib
import json
import os
import re
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import psutil

from fedkd.recipe import Recipe

APP = """[build-system]
requires = ["setuptools"]
build-backend = "setuptools.build_meta"

[project]
name = "fedkd-run"
version = "1.0.0"
description = "A fedkd run"
license = "Apache-2.0"
dependencies = []

[tool.flwr.app]
publisher = "fedkd"

[tool.flwr.app.components]
serverapp = "fedkd_run:server"
clientapp = "fedkd_run:client"

[tool.flwr.app.config]
recipe = ""
overrides = ""
out-dir = ""
registry-url = ""
"""
ENTRY = '''"""The installed fedkd as a Flower app."""

from {clients} import app as client
from server.app import app as server

__all__ = ["client", "server"]
'''
QUIET = {
    "FLWR_TELEMETRY_ENABLED": "0",
    "FLWR_DISABLE_UPDATE_CHECK": "1",
    "FLWR_DISABLE_RUNTIME_DEPENDENCY_INSTALLATION": "1",
    "RAY_USAGE_STATS_ENABLED": "0",
    "RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO": "0",
    "RAY_DISABLE_DOCKER_CPU_WARNING": "1",
    "RAY_worker_niceness": "0",  # the nodes are the work; at Ray's 15 a run stands still beside anything else
    "PYTHONUNBUFFERED": "1",
}
BOOTSTRAP = "cluster_name: fedkd\nprovider:\n  type: local\n"  # keeps Ray from asking cloud metadata services


FLWR_CLI = """
import sys
from flwr.cli import local_superlink
from flwr.cli.app import app
local_superlink.LOCAL_SUPERLINK_STARTUP_TIMEOUT = 120.0  # Flower's 15 s are too few on a busy machine
sys.argv[0] = "flwr"
app()
"""
FLWR = [sys.executable, "-c", FLWR_CLI]


STARTED = re.compile(rb"started run (\d+)")  # what `flwr run` prints


@dataclass
class FlowerRun:
    """A started run of Flower: the `flwr run` that follows it, with its folder, environment and log.

    `connection` is the name of the SuperLink in that environment's config.toml (empty: the default one).
    """

    process: subprocess.Popen[bytes]
    home: Path
    env: dict[str, str]
    log: Path
    connection: str = ""

    def running(self) -> bool:
        """Whether `flwr run` is still streaming."""
        return self.process.poll() is None

    def status(self) -> str:
        """Flower's own word on the run, e.g. `finished:completed`; `flwr run` itself exits 0 in any case."""
        number = self.number()
        command = [*FLWR, "list", *([self.connection] if self.connection else []), "--format", "json"]
        command += ["--run-id", number] if number else []
        with contextlib.suppress(ValueError, KeyError, IndexError, subprocess.TimeoutExpired):
            done = subprocess.run(command, env=self.env, cwd=self.home, capture_output=True, text=True, timeout=60)
            return str(json.loads(done.stdout[done.stdout.index("{") :])["runs"][0]["status"])
        return "unknown"

    def number(self) -> str:
        """Flower's id of the run, or an empty string when it was not accepted."""
        found = STARTED.search(self.log.read_bytes()) if self.log.is_file() else None
        return found.group(1).decode() if found else ""

    def stop(self) -> None:
        """End the run at the SuperLink, if it is still going on; nodes and SuperLink stay."""
        if number := self.number():
            command = [*FLWR, "stop", number, *([self.connection] if self.connection else [])]
            with contextlib.suppress(subprocess.TimeoutExpired):
                subprocess.run(command, env=self.env, cwd=self.home, capture_output=True, timeout=60)
        self.process.terminate()


def environment(home: Path, recipe: Recipe, token: str = "") -> dict[str, str]:
    """The child's environment: a home of its own, quiet, offline where the recipe needs no hub, the nodes' token."""
    from fedkd.models.source import resolve_model

    env = {**os.environ, **QUIET}
    if token:
        env["FEDKD_TOKEN"] = token  # what clients.blobs asks for
    caches = Path(os.environ.get("XDG_CACHE_HOME", Path.home() / ".cache"))
    env.setdefault("HF_HOME", str(caches / "huggingface"))
    env |= {"HOME": str(home), "FLWR_HOME": str(home / "flwr"), "RAY_TMPDIR": str(home), "TMPDIR": str(home)}
    env["PATH"] = os.pathsep.join([str(Path(sys.executable).parent), env.get("PATH", "")])
    root = str(Path(__file__).resolve().parent.parent)
    env["PYTHONPATH"] = os.pathsep.join(filter(None, [root, env.get("PYTHONPATH", "")]))
    env["OMP_NUM_THREADS"] = env["MKL_NUM_THREADS"] = str(recipe.run.threads)
    env["FLWR_LOCAL_SUPERLINK_HTTP_API_PORT"], env["FLWR_LOCAL_CONTROL_API_PORT"] = free_ports(2)
    if Path(resolve_model(recipe.model.path)).is_dir() and recipe.data.source in {"digits", "folder"}:
        env["HF_HUB_OFFLINE"] = env["HF_DATASETS_OFFLINE"] = "1"
    return env


def free_ports(count: int) -> list[str]:
    """Loopback ports that nobody listens on, so that two runs can go side by side."""
    with contextlib.ExitStack() as stack:
        sockets = [stack.enter_context(socket.socket()) for _ in range(count)]
        for one in sockets:
            one.bind(("127.0.0.1", 0))
        return [str(one.getsockname()[1]) for one in sockets]


def submit(
    home: Path,
    env: dict[str, str],
    run: Path,
    *,
    registry_url: str = "",
    federation: str = "",
    connection: str = "",
    clients: str = "clients.app",
) -> FlowerRun:
    """Write the app folder and start `flwr run` of RUN/recipe.yaml in a session of its own.

    `clients` is the module of the ClientApp that nodes run.
    """
    app, log = home / "app", run / "flower.log"
    app.mkdir()
    (app / "pyproject.toml").write_text(APP, encoding="utf-8")
    (app / "fedkd_run.py").write_text(ENTRY.format(clients=clients), encoding="utf-8")
    config = f"recipe='{run / 'recipe.yaml'}' out-dir='{run}' registry-url='{registry_url}'"
    command = [*FLWR, "run", str(app), *([connection] if connection else []), "--stream"]
    command += [*(["--federation-config", federation] if federation else []), "--run-config", config]
    with log.open("wb") as stream:
        process = subprocess.Popen(
            command,
            env=env,
            cwd=home,
            stdin=subprocess.DEVNULL,
            stdout=stream,
            stderr=stream,
            start_new_session=True,
        )
    return FlowerRun(process, home, env, log, connection)


def family(home: Path) -> list[psutil.Process]:
    """Every process whose FLWR_HOME is that of this home: SuperLink, ServerApp, SuperNode, Ray and its workers."""
    found, mark = [], str(home / "flwr")
    for process in psutil.process_iter():
        with contextlib.suppress(psutil.Error, OSError):
            if process.pid != os.getpid() and process.environ().get("FLWR_HOME") == mark:
                found.append(process)
    return found


def sweep(home: Path, patience_s: float = 5.0) -> None:
    """End all processes of a home: politely, then for good."""
    deadline = time.monotonic() + 4 * patience_s
    polite = True
    while (left := family(home)) and time.monotonic() < deadline:
        for process in left:
            with contextlib.suppress(psutil.Error):
                process.terminate() if polite else process.kill()
        psutil.wait_procs(left, timeout=patience_s if polite else 1.0)
        polite = False


@contextlib.contextmanager
def unhurried() -> Iterator[None]:
    """Ignore a second Ctrl-C while cleaning up."""
    before = signal.signal(signal.SIGINT, signal.SIG_IGN)
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, before)


def last_error(run: Path, log: Path) -> tuple[str, bool]:
    """What stopped a failed run in one line, and whether it is a defect of ours."""
    path = run / "error.json"
    if path.is_file():
        facts = json.loads(path.read_text(encoding="utf-8"))
        return str(facts["error"]), bool(facts["defect"])
    lines = [line.strip() for line in log.read_text(encoding="utf-8", errors="replace").splitlines() if line.strip()]
    boxed = " ".join(line.strip("│ ") for line in lines if line.startswith("│"))  # how `flwr` tells of errors
    told = [line for line in lines if line[0] not in "╭│╰"]
    errors = [line for line in told if re.match(r"(\x1b\[\d+m)*ERROR\b", line)]
    return (boxed or (errors or told or ["Flower did not start"])[-1])[:300], True
