"""What an edge keeps on its disk: bytes taken, last use, pins and leases, and who goes when room is needed."""

from __future__ import annotations

import contextlib
import fcntl
import os
import shutil
import time
import uuid
from collections.abc import Container, Iterator
from pathlib import Path

from filelock import FileLock, Timeout

from fedkd.checkpoints.blobs import BlobStore, read_manifest, write_atomically
from fedkd.checkpoints.manifest import CheckpointError, FileEntry, Manifest
from fedkd.checkpoints.pointers import read_pointer

ROOM_NAME = "room"  # in a flight's folder: the bytes it will still bring


class Shelf:
    """Models below `root`: versions/DIGEST/, flights/DIGEST/ (on their way in), pins/DIGEST, trash/ (on the way out).

    A version's folder has the time of its last use as its own. Whoever changes the shelf holds the cache's store lock.
    """

    def __init__(self, root: Path) -> None:
        self.root = root
        self.blobs = BlobStore(root)

    def folder(self, digest: str) -> Path:
        """Where the model with this digest lies or would lie."""
        return self.root / "versions" / digest

    def flight(self, digest: str) -> Path:
        """Where the files of a model that is on its way in gather."""
        return self.root / "flights" / digest

    def flight_lock(self, digest: str) -> FileLock:
        """Held by whoever brings a model in; the system frees it when its holder dies."""
        path = self.root / "locks" / "flights" / digest
        path.parent.mkdir(parents=True, exist_ok=True)
        return FileLock(path, thread_local=False)

    def held(self) -> list[str]:
        """Digests of the models here, the one used longest ago first."""
        folders = [path for path in (self.root / "versions").glob("*") if path.is_dir()]
        return [path.name for path in sorted(folders, key=lambda path: (path.stat().st_mtime_ns, path.name))]

    def touch(self, digest: str) -> None:
        """Note that a model was used now."""
        with contextlib.suppress(OSError):
            os.utime(self.folder(digest))

    def pin(self, digest: str) -> None:
        """Never evict a model, until `unpin`."""
        write_atomically(self.root / "pins" / digest, "")

    def unpin(self, digest: str) -> None:
        """Undo `pin`."""
        (self.root / "pins" / digest).unlink(missing_ok=True)

    def pinned(self) -> set[str]:
        """Digests that are pinned."""
        return {path.name for path in (self.root / "pins").glob("*") if not path.name.endswith(".part")}

    @contextlib.contextmanager
    def lease(self, digest: str) -> Iterator[Path]:
        """The folder of a model, kept from eviction by every process while inside; CheckpointError when it is gone."""
        folder = self.folder(digest)
        try:
            descriptor = os.open(folder, os.O_RDONLY)
        except OSError as error:
            raise CheckpointError(f"the cache no longer holds {digest[:12]}; fetch it again") from error
        try:
            fcntl.flock(descriptor, fcntl.LOCK_SH)
            if not folder.is_dir() or not os.path.samestat(os.fstat(descriptor), folder.stat()):
                raise CheckpointError(f"the cache no longer holds {digest[:12]}; fetch it again")
            yield folder
        finally:
            os.close(descriptor)

    def stored_bytes(self) -> int:
        """Bytes of all files of the cache, hard links once."""
        sizes: dict[tuple[int, int], int] = {}
        for folder, _, names in os.walk(self.root):
            for name in names:
                with contextlib.suppress(FileNotFoundError):
                    facts = os.lstat(os.path.join(folder, name))
                    sizes[facts.st_dev, facts.st_ino] = facts.st_size
        return sum(sizes.values())

    def make_room(self, manifest: Manifest, lacking: list[FileEntry], keep: set[str], max_bytes: int) -> None:
        """Evict the models used longest ago until the `lacking` files of `manifest` fit into `max_bytes` (0: no bound).

        Those in `keep`, pinned or leased stay. CheckpointError, before anything is evicted, when they leave no room.
        """
        self.empty_trash()
        if not max_bytes:
            return
        keep = keep | {manifest.digest}
        fixed = dict(manifest.blobs)
        for digest in self.held():
            if digest in keep or self.guarded(digest):
                fixed |= self._blobs_of(digest)
        needed = sum(entry.size for entry in lacking)
        fits = sum(fixed.values()) <= max_bytes
        while fits and self.stored_bytes() + self._promised(manifest.digest) + needed > max_bytes:
            fits = self.evict_one(keep)
        if not fits:
            own = sum(manifest.blobs.values())
            raise CheckpointError(
                f"{manifest.reference} has {own} bytes beside {sum(fixed.values()) - own} that are served, pinned or "
                f"in use, and the cache may hold {max_bytes}; raise serving.cache_mb or unpin a model"
            )

    def evict_one(self, keep: set[str]) -> bool:
        """Drop what nobody needs, else the model used longest ago; False when nothing may go."""
        return self.sweep(0.0, keep) or any(digest not in keep and self.evict(digest) for digest in self.held())

    def sweep(self, older_s: float, keep: Container[str] = ()) -> bool:
        """Delete downloads that were given up and blobs of no model, untouched for `older_s` seconds; whether any was.

        A killed process leaves such; those of models in `keep` stay.
        """
        before, swept = time.time() - older_s, False
        for flight in (self.root / "flights").glob("*"):
            lock = self.flight_lock(flight.name)
            if flight.name not in keep and _untouched(flight, before) and _free(lock):
                try:
                    shutil.rmtree(flight, ignore_errors=True)
                    swept |= not flight.exists()
                finally:
                    lock.release()
        wanted = {sha256 for digest in self.held() for sha256 in self._blobs_of(digest)}
        for blob in self.blobs.folder.glob("??/*"):
            if blob.name not in wanted and _untouched(blob, before):
                blob.unlink(missing_ok=True)
                swept = True
        return swept

    def drop_superseded(self, name: str, keep: set[str]) -> None:
        """Evict versions of `name` that are not in `keep`, nor the newest of another name, nor guarded."""
        names = [path for path in (self.root / "names").iterdir() if not path.name.startswith(".")]
        keep = keep | {read_pointer(path) for path in names}
        for digest in self.held():
            with contextlib.suppress(CheckpointError):
                if digest not in keep and read_manifest(self.folder(digest)).name == name:
                    self.evict(digest)

    def guarded(self, digest: str) -> bool:
        """Whether a model is pinned, or leased at this moment, or just being brought in."""
        if digest in self.pinned() or self._in_flight(digest):
            return True
        with self._alone(digest) as alone:
            return not alone

    def evict(self, digest: str) -> bool:
        """Remove a model and the blobs that no other one has; False when it is guarded."""
        if digest in self.pinned() or self._in_flight(digest):
            return False
        with self._alone(digest) as alone:
            if not alone:
                return False
            mine, trash = self._blobs_of(digest), self.root / "trash" / uuid.uuid4().hex
            trash.parent.mkdir(parents=True, exist_ok=True)
            self.folder(digest).rename(trash)  # gone in one step
        still = {sha256 for other in self.held() for sha256 in self._blobs_of(other)}
        for sha256 in set(mine) - still:
            self.blobs.path(sha256).unlink(missing_ok=True)
        self.empty_trash()
        return True

    @contextlib.contextmanager
    def _alone(self, digest: str) -> Iterator[bool]:
        """Whether the model is here and nobody leases it; nobody can while inside."""
        try:
            descriptor = os.open(self.folder(digest), os.O_RDONLY)
        except OSError:
            yield False
            return
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            yield False
        else:
            yield True
        finally:
            os.close(descriptor)

    def empty_trash(self) -> None:
        """Delete what was evicted, also by a process that died over it."""
        shutil.rmtree(self.root / "trash", ignore_errors=True)

    def _blobs_of(self, digest: str) -> dict[str, int]:
        try:
            return read_manifest(self.folder(digest)).blobs
        except CheckpointError:  # a damaged one claims nothing
            return {}

    def _in_flight(self, digest: str) -> bool:
        lock = self.flight_lock(digest)
        if not _free(lock):
            return True
        lock.release()
        return False

    def _promised(self, digest: str) -> int:
        """Bytes that other downloads under way will still bring."""
        promised = 0
        for flight in (self.root / "flights").glob("*"):
            if flight.name != digest and self._in_flight(flight.name):
                with contextlib.suppress(OSError, ValueError):
                    sizes = [facts.st_size for path in flight.iterdir() if (facts := path.stat()).st_nlink == 1]
                    promised += max(0, int((flight / ROOM_NAME).read_text(encoding="ascii")) - sum(sizes))
        return promised


def _free(lock: FileLock) -> bool:
    """Take the lock if nobody holds it."""
    try:
        lock.acquire(timeout=0)
    except Timeout:
        return False
    return True


def _untouched(path: Path, since: float) -> bool:
    """Whether the path is there and was not changed since (Unix time)."""
    try:
        return path.stat().st_mtime <= since
    except FileNotFoundError:
        return False
