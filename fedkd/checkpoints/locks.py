"""Who may write to a registry: many writers side by side, one at a time under a name, and gc alone."""

from __future__ import annotations

import os
import threading
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from filelock import FileLock, Timeout

from fedkd.checkpoints.manifest import CheckpointError

WAIT_S = 60.0


class WriterLocks:
    """File locks below `root`/locks; the system frees them when their holder dies, by kill -9 too.

    A writer holds a lease of its own (locks/writers/UUID), taken while it passes the gate. The collector holds
    the gate, so that no new writer passes, and waits until every lease is free.
    """

    _leases: dict[tuple[int, str], tuple[FileLock, int]] = {}  # noqa: RUF012 (one lease a process and registry)
    _turn = threading.Lock()

    def __init__(self, root: Path) -> None:
        self.folder = root / "locks"

    def _lock(self, name: str) -> FileLock:
        path = self.folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        return FileLock(path, thread_local=False)

    @contextmanager
    def writing(self) -> Iterator[None]:
        """What is written inside is safe from gc; any number of writers at once, in threads and processes too."""
        key = (os.getpid(), str(self.folder.resolve()))
        with self._turn:
            lease, count = self._leases.get(key) or (self._take_lease(), 0)
            self._leases[key] = (lease, count + 1)
        try:
            yield
        finally:
            with self._turn:
                lease, count = self._leases.pop(key)
                if count > 1:
                    self._leases[key] = (lease, count - 1)
                else:
                    Path(lease.lock_file).unlink(missing_ok=True)
                    lease.release()

    def _take_lease(self) -> FileLock:
        with waiting(self._lock("gate"), "a garbage collection is running"):
            lease = self._lock(f"writers/{uuid.uuid4().hex}")
            lease.acquire()
        return lease

    @contextmanager
    def naming(self, name: str) -> Iterator[None]:
        """Alone among those who add versions to `name` or move its aliases and pins."""
        with waiting(self._lock(f"names/{name}"), f"another process is publishing '{name}'"):
            yield

    @contextmanager
    def collecting(self, wait_s: float = WAIT_S) -> Iterator[None]:
        """Alone in the whole registry; CheckpointError when writers do not end within `wait_s` seconds."""
        with waiting(self._lock("gate"), "another garbage collection is running", wait_s):
            for path in sorted((self.folder / "writers").glob("*")):
                with waiting(FileLock(path, thread_local=False), "somebody is publishing or pulling", wait_s):
                    path.unlink(missing_ok=True)
            yield


@contextmanager
def waiting(lock: FileLock, why: str, wait_s: float = WAIT_S) -> Iterator[None]:
    """Hold `lock`; CheckpointError that says `why` when it is not free within `wait_s` seconds."""
    try:
        lock.acquire(timeout=wait_s)
    except Timeout as error:
        raise CheckpointError(f"{why} in '{lock.lock_file}' for more than {wait_s:g} s; try again later") from error
    try:
        yield
    finally:
        lock.release()
