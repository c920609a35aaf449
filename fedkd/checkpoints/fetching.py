"""Fetching blobs: hashed while they are written, gone on with where an earlier attempt stopped, never half."""

from __future__ import annotations

import hashlib
import threading
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from filelock import FileLock

from fedkd.checkpoints.blobs import BlobStore
from fedkd.checkpoints.derivation import Fetch
from fedkd.checkpoints.locks import waiting
from fedkd.checkpoints.manifest import CheckpointError, FileEntry, Manifest
from fedkd.checkpoints.remotes import Remote, open_remote, shown

ATTEMPTS = 4  # streams that break are gone on with so often, as long as each brings something
PAUSE_S = 0.5  # before the second attempt; doubles
FETCH_WAIT_S = 3600.0  # for another process that fetches the same blob

Progress = Callable[[int, int], None]  # bytes done, bytes in all


class Tally:
    """Bytes moved so far, counted from several threads; `stop` ends them all at the next piece."""

    def __init__(self, total: int, progress: Progress | None) -> None:
        self.moved, self.done, self.total = 0, 0, total
        self.stop = threading.Event()
        self._progress, self._lock = progress, threading.Lock()
        self.advance(0)

    def advance(self, size: int, *, moved: bool = True) -> None:
        """`size` more bytes are in place; `moved` says whether they came over the wire."""
        if self.stop.is_set():
            raise CheckpointError("the transfer was stopped")
        with self._lock:
            self.done += size
            self.moved += size if moved else 0
            if self._progress is not None and self.total:
                self._progress(max(0, min(self.done, self.total)), self.total)


class Fetcher:
    """Brings blobs from a remote to a path: `fetcher(entry, path)`, which is what an edge's cache asks for."""

    def __init__(self, remote: Remote, tally: Tally | None = None) -> None:
        self.remote, self.tally = remote, tally or Tally(0, None)
        self.fetched: list[str] = []  # sha256 of the blobs brought so far

    def __call__(self, entry: FileEntry, path: Path) -> None:
        """Write the entry's content to `path`, going on with what is there; CheckpointError when it cannot be had.

        At a wrong digest all is thrown away and fetched once more; a second wrong one is refused.
        """
        for again in (True, False):
            if self._complete(path, entry) == entry.sha256:
                self.fetched.append(entry.sha256)
                return
            path.unlink(missing_ok=True)
            if again:
                self.tally.advance(-entry.size, moved=False)
        raise CheckpointError(
            f"{shown(self.remote.url)} sends a blob for '{entry.path}' that does not have the sha256 "
            f"{entry.sha256[:12]} it should have; nothing was kept of it"
        )

    def into(self, store: BlobStore, parts: Path, bring: Fetch, entry: FileEntry) -> None:
        """Bring a blob into a store, unless another process does so at this moment: then wait for it."""
        lock = FileLock(parts / f"{entry.sha256}.lock", thread_local=False)
        parts.mkdir(parents=True, exist_ok=True)
        with waiting(lock, f"another process is fetching blob {entry.sha256[:12]}", FETCH_WAIT_S):
            if store.has(entry):
                self.tally.advance(entry.size, moved=False)
                return
            part = parts / f"{entry.sha256}.part"
            bring(entry, part)
            store.path(entry.sha256).parent.mkdir(parents=True, exist_ok=True)
            store.settle(part, entry.sha256, verified=True)

    def _complete(self, part: Path, entry: FileEntry) -> str:
        """Go on with the part until it has the entry's size; returns its sha256."""
        digest, have = _started(part, entry.size)
        self.tally.advance(have, moved=False)
        for attempt in range(ATTEMPTS):
            before = have
            try:
                with part.open("ab") as file:
                    for chunk in self.remote.chunks(entry, have) if have < entry.size else ():
                        if have + len(chunk) > entry.size:
                            raise CheckpointError(
                                f"{shown(self.remote.url)} sends more than the {entry.size} bytes of '{entry.path}'"
                            )
                        file.write(chunk)
                        digest.update(chunk)
                        have += len(chunk)
                        self.tally.advance(len(chunk))
            except CheckpointError:
                if self.tally.stop.is_set() or have == before or attempt + 1 == ATTEMPTS:
                    raise
            if have == entry.size:
                return digest.hexdigest()
            if have == before:
                break
            time.sleep(PAUSE_S * 2**attempt)
        raise CheckpointError(
            f"{shown(self.remote.url)} went away in mid-transfer, after {have} of the {entry.size} bytes of "
            f"'{entry.path}'; what came is kept: run the same command again to go on"
        )


def _started(part: Path, size: int) -> tuple[hashlib._Hash, int]:
    """sha256 so far and bytes so far of what an earlier attempt left behind."""
    digest, have = hashlib.sha256(), 0
    if part.is_file() and part.stat().st_size > size:
        part.unlink()
    if part.is_file():
        with part.open("rb") as file:
            while piece := file.read(1 << 20):
                digest.update(piece)
                have += len(piece)
    return digest, have


def fetcher(url: str, *, token: str = "") -> Fetcher:
    """A `Fetcher` from the registry at `url`, for as long as the process lives."""
    return Fetcher(open_remote(url, token=token))


def side_by_side(jobs: int, tally: Tally, entries: list[FileEntry], work: Callable[[FileEntry], None]) -> None:
    """Do the work for every entry, `jobs` at once; the first failure stops the others and is raised."""
    with ThreadPoolExecutor(max(1, jobs)) as pool:
        futures = [pool.submit(work, entry) for entry in entries]
        try:
            for future in futures:
                future.result()
        except BaseException:
            tally.stop.set()
            pool.shutdown(wait=True, cancel_futures=True)
            failed = [future.exception() for future in futures if future.done() and not future.cancelled()]
            told = [error for error in failed if error and "was stopped" not in str(error)]
            if told:
                raise told[0] from None
            raise


def distinct(manifest: Manifest) -> list[FileEntry]:
    """The files of a manifest, each content once, the largest first."""
    entries = {entry.sha256: entry for entry in manifest.files}
    return sorted(entries.values(), key=lambda entry: -entry.size)
