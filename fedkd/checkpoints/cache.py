"""A node's cache of checkpoints: bounded, shared by digest, one download a model, swapped in one step."""

from __future__ import annotations

import contextlib
import errno
import shutil
from collections.abc import Iterator
from pathlib import Path

from filelock import FileLock

from fedkd.checkpoints.blobs import BlobStore
from fedkd.checkpoints.counters import CacheCounters, add_counts, read_counters
from fedkd.checkpoints.derivation import Fetch
from fedkd.checkpoints.eviction import Shelf
from fedkd.checkpoints.flights import Flight
from fedkd.checkpoints.locks import waiting
from fedkd.checkpoints.manifest import (
    MANIFEST_NAME,
    SIGNATURE_NAME,
    CheckpointError,
    FileEntry,
    Manifest,
    check_name,
    file_digest,
)
from fedkd.checkpoints.pointers import point, read_pointer
from fedkd.checkpoints.signing import TrustPolicy
from fedkd.checkpoints.soundness import check_sound, remember_sound

FLIGHT_WAIT_S = 4 * 3600.0
ABANDONED_S = 24 * 3600.0  # downloads and blobs that nobody came back for
DISK_FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)


class CheckpointCache:
    """Checkpoints below `root`, several models at once, at most `max_bytes` in all (0: no bound).

    Only what `policy` trusts and `contents` allows is taken, before it gets its name and again when it is used.
    `fetch` brings blobs that lack or were damaged. `current` is the model that the node serves.
    """

    def __init__(
        self, root: Path, *, max_bytes: int = 0, policy: TrustPolicy | None = None, fetch: Fetch | None = None
    ) -> None:
        self.root, self.max_bytes, self.fetch = root, max_bytes, fetch
        self.policy = policy or TrustPolicy()
        self.blobs = BlobStore(root)
        self.shelf = Shelf(root)
        self._put: dict[str, int] = {}

    @property
    def digest(self) -> str:
        """Digest of the checkpoint that is served; empty when there is none."""
        return self._read("current")

    @property
    def counters(self) -> CacheCounters:
        """Hits, misses, bytes fetched and bytes saved so far."""
        return read_counters(self.root)

    def sound_digest(self) -> str:
        """Digest of the served checkpoint if it is whole and trusted at this moment, else empty."""
        with contextlib.suppress(CheckpointError, OSError):
            self._check(self.digest)
            return self.digest
        return ""

    def path(self, name: str = "") -> Path:
        """The verified folder of the served checkpoint, or of the newest of `name`; damaged blobs are fetched again."""
        digest = self._pointed(name)
        try:
            try:
                self._check(digest)
            except (CheckpointError, FileNotFoundError):
                with self._flight(digest):
                    self._mend(digest)
        except CheckpointError:
            if self._pointed(name) != digest:  # superseded and gone while it was read
                return self.path(name)
            raise
        return self._hit(digest)

    @contextlib.contextmanager
    def lease(self, name: str = "") -> Iterator[Path]:
        """`path`, kept on the disk while it is in use, whatever is activated or evicted meanwhile."""
        with contextlib.ExitStack() as held:
            while True:
                folder = self.path(name)
                try:
                    held.enter_context(self.shelf.lease(folder.name))
                    break
                except CheckpointError:
                    if self._pointed(name) == folder.name:
                        raise
            yield folder

    def _pointed(self, name: str) -> str:
        digest = self._read(f"names/{check_name(name)}") if name else self.digest
        if not digest:
            of = f" of '{name}'" if name else ""
            raise CheckpointError(f"the cache holds no checkpoint{of} yet; it has to be refreshed first")
        return digest

    def held(self) -> list[str]:
        """Digests of all undamaged blobs, sorted; a damaged one is deleted so that it is fetched again."""
        for sha256 in self.blobs.digests():
            with contextlib.suppress(FileNotFoundError):
                if file_digest(self.blobs.path(sha256)) != sha256:
                    self.blobs.path(sha256).unlink(missing_ok=True)
        return self.blobs.digests()

    def missing(self, manifest: Manifest) -> list[FileEntry]:
        """The files of `manifest` whose content has to be fetched, each content once."""
        lacking = {entry.sha256: entry for entry in manifest.files if not self.blobs.has(entry)}
        return list(lacking.values())

    def put(self, sha256: str, data: bytes) -> None:
        """Store a fetched blob; CheckpointError when it is damaged. `fetch` is the way that heeds the bound."""
        self.blobs.put_bytes(sha256, data)
        self._put[sha256] = len(data)
        add_counts(self.root, bytes_fetched=len(data))

    def obtain(self, manifest: Manifest, *, text: str = "", signature: bytes = b"", fetch: Fetch | None = None) -> Path:
        """The verified folder of a model, brought in when it is not here; what is served stays.

        `text`: its manifest.json as published, byte for byte, which `signature` (model.sig) covers. Any number of
        threads and processes that ask for one model at once cause one download. CheckpointError when it is refused,
        lacks something, or finds no room; nothing has changed then.
        """
        if self._whole(manifest, text, signature):
            return self._hit(manifest.digest)
        with self._flight(manifest.digest):
            return self._bring(manifest, text, signature, fetch)

    def activate(
        self, manifest: Manifest, *, text: str = "", signature: bytes = b"", fetch: Fetch | None = None
    ) -> Path:
        """`obtain` a model and serve it, in one step; the version before stays for requests in flight."""
        with self._flight(manifest.digest):
            folder = self._bring(manifest, text, signature, fetch)
            with self._store():
                keep = {self._read(f"names/{manifest.name}"), self.digest, manifest.digest}
                try:
                    point([self.root / "names" / manifest.name, self.root / "current"], manifest.digest)
                except OSError as error:
                    raise self._full(manifest, error) if error.errno in DISK_FULL else error from None
                self.shelf.drop_superseded(manifest.name, keep)
                self.shelf.sweep(ABANDONED_S)
        return folder

    def _bring(self, manifest: Manifest, text: str, signature: bytes, fetch: Fetch | None) -> Path:
        """`obtain` under the model's flight lock; on a full disk other models make room."""
        if self._whole(manifest, text, signature):
            return self._hit(manifest.digest)
        while True:
            try:
                fetched = self._complete(manifest, text or manifest.to_json(), signature, fetch or self.fetch)
                break
            except OSError as error:
                if error.errno not in DISK_FULL:
                    raise
                with self._store():
                    if error.errno != errno.EFBIG and self.shelf.evict_one({self.digest, manifest.digest}):
                        continue
                shutil.rmtree(self.shelf.flight(manifest.digest), ignore_errors=True)
                raise self._full(manifest, error) from error
        saved = sum(size for sha256, size in manifest.blobs.items() if sha256 not in self._put) - fetched
        add_counts(self.root, misses=1, bytes_fetched=fetched, bytes_saved=saved)
        return self.shelf.folder(manifest.digest)

    def _full(self, manifest: Manifest, error: OSError) -> CheckpointError:
        return CheckpointError(
            f"the disk of '{self.root}' is full ({error.strerror}): {manifest.reference} was not taken and nothing "
            "changed; free some space"
        )

    def _complete(self, manifest: Manifest, text: str, signature: bytes, fetch: Fetch | None) -> int:
        """Gather, fetch, check and name a model; the bytes that came from outside."""
        flight = Flight(self.shelf.flight(manifest.digest), self.blobs, manifest)
        with self._store():
            lacking = flight.gather()
            if lacking and fetch is None:
                flight.discard()
                raise CheckpointError(f"blob {lacking[0].sha256[:12]} of '{lacking[0].path}' is missing or damaged")
            self.shelf.make_room(manifest, lacking, {self.digest}, self.max_bytes)
            flight.promise(lacking)
        fetched = flight.fetch(lacking, fetch) if fetch is not None else 0
        try:
            build = flight.build(text, signature, self.policy)
            with self._store():
                self.shelf.make_room(manifest, [], {self.digest}, self.max_bytes)
                flight.settle(build, self.shelf.folder(manifest.digest))
        except CheckpointError:  # refused: nothing of it is worth keeping
            flight.discard()
            raise
        flight.discard()
        remember_sound(self.shelf.folder(manifest.digest), self.policy)
        return fetched

    def _whole(self, manifest: Manifest, text: str, signature: bytes) -> bool:
        """Whether the model lies here whole and trusted, with this manifest and signature."""
        folder = self.shelf.folder(manifest.digest)
        try:
            self._check(manifest.digest)
            same = not text or (folder / MANIFEST_NAME).read_bytes() == text.encode()
            return same and (not signature or (folder / SIGNATURE_NAME).read_bytes() == signature)
        except (CheckpointError, OSError):
            return False

    def _check(self, digest: str) -> None:
        """CheckpointError unless the model with this digest is whole, allowed and trusted."""
        check_sound(self.shelf.folder(digest), digest, self.policy)

    def _mend(self, digest: str) -> None:
        """Fetch the damaged blobs of a model that is here; CheckpointError when that cannot be done."""
        folder = self.shelf.folder(digest)
        try:
            self._check(digest)  # another one mended it
        except CheckpointError:
            if not folder.exists():
                raise CheckpointError(f"the cache no longer holds {digest[:12]}; fetch it again") from None
            if self.fetch is None:
                raise
            try:
                text, signature = (folder / MANIFEST_NAME).read_text(encoding="utf-8"), b""
                with contextlib.suppress(FileNotFoundError):
                    signature = (folder / SIGNATURE_NAME).read_bytes()
                manifest = Manifest.from_json(text)
            except (OSError, UnicodeDecodeError) as error:
                raise CheckpointError(f"'{folder}' has no readable {MANIFEST_NAME}; it has to be refreshed") from error
            if manifest.digest != digest:
                raise
            self._bring(manifest, text, signature, None)

    def _hit(self, digest: str) -> Path:
        self.shelf.touch(digest)
        add_counts(self.root, hits=1)
        return self.shelf.folder(digest)

    def _read(self, pointer: str) -> str:
        return read_pointer(self.root / pointer)

    def _flight(self, digest: str) -> contextlib.AbstractContextManager[None]:
        return waiting(self.shelf.flight_lock(digest), f"another process fetches {digest[:12]}", FLIGHT_WAIT_S)

    def _store(self) -> contextlib.AbstractContextManager[None]:
        path = self.root / "locks" / "store"
        path.parent.mkdir(parents=True, exist_ok=True)
        return waiting(FileLock(path, thread_local=False), "another process changes the cache", FLIGHT_WAIT_S)
