"""One operation on a registry in a process of its own, which is killed, or runs out of disk, at a random point."""

from __future__ import annotations

import contextlib
import multiprocessing
import os
import random
import signal
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from multiprocessing.connection import Connection
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from fedkd.checkpoints.cache import CheckpointCache
    from fedkd.checkpoints.registry import Registry

NAME = "m"
OPERATIONS = ("publish", "pull", "swap", "gc", "gc of a mirror")
FILE_EVENTS = frozenset(
    {"open", "os.rename", "os.link", "os.mkdir", "os.rmdir", "os.remove", "os.chmod", "os.truncate"}
)
CALL_LIMIT_S = 120.0
PRELOADED = [*(f"fedkd.checkpoints.{name}" for name in ("transfer", "collection", "cache", "http_remote")), "numpy"]


@dataclass(frozen=True)
class Site:
    """A cloud's registry, a mirror that pulls from it into a registry, and an edge's cache; `url` is the cloud's."""

    folder: Path
    url: str
    token: str = ""

    @property
    def model(self) -> Path:
        """The diffusers folder that is published next."""
        return self.folder / "model"

    @property
    def cloud(self) -> Registry:
        """Where models are published."""
        from fedkd.checkpoints.registry import Registry

        return Registry(self.folder / "cloud")

    @property
    def mirror(self) -> Registry:
        """A registry that pulls."""
        from fedkd.checkpoints.registry import Registry

        return Registry(self.folder / "mirror")

    @property
    def cache(self) -> CheckpointCache:
        """An edge's cache."""
        from fedkd.checkpoints.cache import CheckpointCache

        return CheckpointCache(self.folder / "edge")


def carry_out(operation: str, site: Site) -> str:
    """Do one operation, to its end; what it made, as text."""
    from fedkd.checkpoints.collection import collect
    from fedkd.checkpoints.transfer import pull

    if operation == "publish":
        latest = site.cloud.alias(NAME, "latest")
        parents = [f"{NAME}:{latest}"] if latest else []
        return site.cloud.publish(site.model, name=NAME, parents=parents).reference
    if operation == "pull":
        return pull(NAME, site.url, site.mirror, token=site.token).reference
    if operation == "swap":
        pull(NAME, site.url, site.cache, token=site.token)
        return site.cache.digest
    registry = site.mirror if operation == "gc of a mirror" else site.cloud
    return " ".join(collect(registry).versions)


def child(operation: str, site: Site, told: Connection, die_at: int, file_limit_bytes: int) -> None:
    """What the process does: tell that it is ready, carry out, tell how it ended.

    At its `die_at`-th touch of a file (0: never) it kills itself, as `kill -9` would. No file can be written
    beyond `file_limit_bytes` (negative: any): the system fails the write midway, as a full disk does.
    """
    from fedkd.checkpoints.manifest import CheckpointError

    touched = 0

    def count(event: str, arguments: tuple[Any, ...]) -> None:
        nonlocal touched
        if event in FILE_EVENTS:
            touched += 1
            if touched == die_at:
                os.kill(os.getpid(), signal.SIGKILL)

    told.send("ready")
    if file_limit_bytes >= 0:
        import resource

        signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
        resource.setrlimit(resource.RLIMIT_FSIZE, (file_limit_bytes, file_limit_bytes))
    sys.addaudithook(count)
    try:
        ended = ("done", carry_out(operation, site))
    except (CheckpointError, OSError) as error:
        ended = ("refused", str(error))
    told.send((*ended, touched))


@dataclass
class Ended:
    """How an operation ended: killed, done (`text`: what it made) or refused (`text`: the error)."""

    how: str
    text: str = ""


@dataclass
class Children:
    """Runs operations in child processes, and learns how long each takes so that kills fall anywhere in it."""

    seed: int = 0
    touches: dict[str, int] = field(default_factory=dict)
    seconds: dict[str, float] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self.dice = random.Random(self.seed)
        self.context = multiprocessing.get_context("forkserver")
        self.context.set_forkserver_preload(["__main__", __name__, *PRELOADED])

    def run(self, operation: str, site: Site, *, kill: str = "", touch: int = 0, file_limit_bytes: int = -1) -> Ended:
        """One operation; `kill`: at a "touch" of a file (`touch`: which; 0: a random one), at a random "moment", or
        not at all ("").
        """
        ours, theirs = self.context.Pipe()
        die_at = touch or self.dice.randint(1, self.touches.get(operation, 60)) if kill == "touch" else 0
        process = self.context.Process(target=child, args=(operation, site, theirs, die_at, file_limit_bytes))
        process.start()
        theirs.close()
        try:
            with contextlib.suppress(EOFError):
                ours.recv()
                started = time.monotonic()
                if kill == "moment":
                    ours.poll(self.dice.uniform(0, self.seconds.get(operation, 0.1)))
                    process.kill()
                if not ours.poll(CALL_LIMIT_S):
                    raise RuntimeError(f"{operation} did not end within {CALL_LIMIT_S:g} s")
                how, text, touched = ours.recv()
                if how == "done" and not kill:
                    self.touches[operation] = touched
                    self.seconds[operation] = time.monotonic() - started
                process.join(CALL_LIMIT_S)
                return Ended(how, text)
            process.join(CALL_LIMIT_S)
        finally:
            process.kill()
            process.join()
            ours.close()
        if process.exitcode != -signal.SIGKILL:
            raise RuntimeError(f"{operation} died by itself, with exit code {process.exitcode}")
        return Ended("killed")


@contextlib.contextmanager
def small_disk(folder: Path, size_bytes: int) -> Iterator[bool]:
    """A file system of `size_bytes` in memory at `folder`; False where this user may not make one."""
    import subprocess

    folder.mkdir(parents=True)
    command = ["mount", "-t", "tmpfs", "-o", f"size={size_bytes}", "tmpfs", str(folder)]
    try:
        mounted = subprocess.run(command, capture_output=True, check=False).returncode == 0
    except OSError:
        mounted = False
    try:
        yield mounted
    finally:
        if mounted:
            subprocess.run(["umount", "-l", str(folder)], capture_output=True, check=False)


Say = Callable[[str], None]
