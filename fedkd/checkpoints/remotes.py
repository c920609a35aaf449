"""Registries elsewhere: one small interface over fsspec to read one, and where the store allows, to write to one."""

from __future__ import annotations

import errno
import json
import uuid
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit, urlunsplit

from fedkd.checkpoints.derivation import chain
from fedkd.checkpoints.lora_merge import LORA_NAME
from fedkd.checkpoints.manifest import MANIFEST_NAME, SIGNATURE_NAME, CheckpointError, FileEntry, Gone, Manifest

PIECE_BYTES = 8 << 20  # of a ranged read from a store that cannot stream
TEXT_LIMIT_BYTES = 16 << 20  # no manifest, signature or name is larger
Count = Callable[[int], None]  # told of bytes as they move


def blob_path(sha256: str) -> str:
    """Where a registry keeps the blob, below its root."""
    return f"blobs/sha256/{sha256[:2]}/{sha256}"


def version_path(name: str, version: str) -> str:
    """Where a registry keeps a version, below its root."""
    return f"versions/{name}/{version}"


class Remote:
    """A registry below a URL that fsspec understands: s3://bucket/path, memory://path, …

    Missing things are None or False; a store that fails is a CheckpointError in one line.
    """

    writable = True

    def __init__(self, url: str) -> None:
        import fsspec

        self.url = url.rstrip("/")
        try:
            self.files, self.root = fsspec.core.url_to_fs(self.url)
        except (ValueError, ImportError, OSError) as error:
            raise CheckpointError(f"'{shown(url)}' cannot be reached: {first_line(error)}") from error

    def _call(self, what: str, *given: Any, **options: Any) -> Any:
        """One call of the store, its failures in our words; FileNotFoundError passes."""
        try:
            return getattr(self.files, what)(*given, **options)
        except FileNotFoundError:
            raise
        except PermissionError as error:
            raise CheckpointError(f"{self.url} refuses access: {first_line(error)}; check your credentials") from error
        except (OSError, ValueError, RuntimeError) as error:
            raise lost(self.url, error) from error
        except Exception as error:
            # The stores' own libraries (botocore, azure, …) have roots of their own for "cannot be reached".
            if type(error).__module__.split(".")[0] in ("fedkd", "builtins"):
                raise
            raise lost(self.url, error) from error

    def _at(self, path: str) -> str:
        return f"{self.root}/{path}" if self.root else path

    def read(self, path: str) -> bytes | None:
        """The small file at `path` (bytes), or None when there is none."""
        try:
            data: bytes = self._call("cat_file", self._at(path), start=0, end=TEXT_LIMIT_BYTES)
        except FileNotFoundError:
            return None
        return data

    def list(self, path: str) -> list[str]:
        """Names of what lies directly below `path`, sorted; empty when there is nothing."""
        try:
            self.files.invalidate_cache()
            found = self._call("ls", self._at(path), detail=False)
        except (FileNotFoundError, NotADirectoryError):
            return []
        return sorted({str(each).rstrip("/").rpartition("/")[2] for each in found})

    def has(self, entry: FileEntry) -> bool:
        """Whether the blob is there with the right size."""
        try:
            self.files.invalidate_cache()
            return bool(self._call("info", self._at(blob_path(entry.sha256)))["size"] == entry.size)
        except FileNotFoundError:
            return False

    def chunks(self, entry: FileEntry, start: int) -> Iterator[bytes | memoryview]:
        """The blob's bytes from `start` on, in pieces."""
        path = self._at(blob_path(entry.sha256))
        while start < entry.size:
            try:
                piece = self._call("cat_file", path, start=start, end=min(start + PIECE_BYTES, entry.size))
            except FileNotFoundError as error:
                raise gone(self.url, entry) from error
            if not piece:
                return
            yield piece
            start += len(piece)

    def put_blob(self, source: Path, entry: FileEntry, count: Count) -> None:
        """Upload a file's content; it appears under its name whole, or not at all."""
        self._put(lambda path: self._call("put_file", str(source), path), self._at(blob_path(entry.sha256)))
        count(entry.size)

    def make(self, manifest: Manifest, entry: FileEntry) -> bool:
        """Whether the blob can be left out, because its parent's weights and the LoRA files are there to make it."""
        derivations = {each.sha256: each for each in manifest.derived}
        bases = {each.base for each in manifest.derived}
        held = {sha256 for sha256 in bases if self.has(FileEntry(entry.path, sha256, entry.size))}
        steps = chain(derivations, entry.sha256, held)
        return bool(steps) and all(self.has(FileEntry(LORA_NAME, step.lora, step.lora_size)) for step in steps or ())

    def put_text(self, path: str, data: bytes) -> None:
        """Write a small file, in place of the one that is there."""
        self._put(lambda target: self._call("pipe_file", target, data), self._at(path))

    def _put(self, write: Callable[[str], Any], path: str) -> None:
        """Write under a temporary name and move, but where the store's own writes are all or nothing."""
        if self.files.protocol and set(_protocols(self.files)) & WHOLE_WRITES:
            write(path)
            return
        part = f"{path}.{uuid.uuid4().hex}.part"
        self._call("makedirs", path.rpartition("/")[0], exist_ok=True)
        write(part)
        self._call("mv", part, path)

    def settle(self, manifest: Manifest, text: bytes, signature: bytes) -> None:
        """Make a version whose blobs are all there appear; CheckpointError when another took its name.

        The manifest comes first, and where the store can tell, only if there is none: so the signature that
        follows is never put beside somebody else's manifest. No alias points at the version before.
        """
        place = version_path(manifest.name, manifest.version)
        there = self.read(f"{place}/{MANIFEST_NAME}")
        if there not in (None, text):
            raise taken(self.url, manifest)
        if there is None:
            self._create(f"{place}/{MANIFEST_NAME}", text, manifest)
        if signature and self.read(f"{place}/{SIGNATURE_NAME}") is None:
            self.put_text(f"{place}/{SIGNATURE_NAME}", signature)

    def _create(self, path: str, text: bytes, manifest: Manifest) -> None:
        if not set(_protocols(self.files)) & WHOLE_WRITES:
            self.put_text(path, text)
            return
        try:
            self._call("pipe_file", self._at(path), text, mode="create")
        except CheckpointError as error:
            if self.read(path) not in (None, text):
                raise taken(self.url, manifest) from error
            raise

    def name(self, name: str, alias: str, version: str) -> None:
        """Point an alias at a version."""
        self.put_text(f"names/{name}/{alias}", version.encode())

    def writing(self) -> AbstractContextManager[None]:
        """What a whole push happens in."""
        return nullcontext()

    def close(self) -> None:
        """Let connections go."""


WHOLE_WRITES = {"s3", "s3a", "gs", "gcs", "abfs", "abfss", "az", "memory"}


def open_remote(url: str, *, token: str = "") -> Remote:
    """The registry at `url`; a bearer `token` is for http(s) and hf alone. CheckpointError names what is possible."""
    scheme, separator, _ = url.partition(":")
    if scheme in ("http", "https"):
        from fedkd.checkpoints.http_remote import HttpRemote

        return HttpRemote(url, token=token)
    if scheme == "hf" and separator:
        from fedkd.checkpoints.hub import HubRemote

        return HubRemote(url, token=token)
    if scheme in ("file", "local") or "://" not in url:
        if "://" not in url and separator and "/" not in scheme and len(scheme) > 1 and scheme != "file":
            raise CheckpointError(f"'{url}' is no place for checkpoints; give {PLACES}")
        from fedkd.checkpoints.local_remote import LocalRemote

        return LocalRemote(url if "://" in url else str(Path(url.removeprefix("file:")).expanduser().resolve()))
    import fsspec

    if scheme not in fsspec.available_protocols():
        raise CheckpointError(f"'{url}' is no place for checkpoints; give {PLACES}")
    return Remote(url)


PLACES = "a folder, file:///PATH, s3://BUCKET/PATH, https://HOST or hf:OWNER/NAME"


def shown(url: str) -> str:
    """The URL without a user's name and password."""
    parts = urlsplit(url)
    return urlunsplit(parts._replace(netloc=parts.netloc.rpartition("@")[2])) if "@" in parts.netloc else url


def read_json_list(data: bytes) -> list[str]:
    """The names in a listing of the registry's HTTP service; empty when it is none."""
    try:
        entries = json.loads(data)["entries"]
        return sorted(str(entry) for entry in entries)
    except (ValueError, KeyError, TypeError):
        return []


def lost(url: str, error: BaseException) -> CheckpointError:
    """A store that cannot be reached, or went away."""
    reason = first_line(error) or type(error).__name__
    return CheckpointError(f"{shown(url)} cannot be reached, or went away in mid-transfer: {reason}")


def gone(url: str, entry: FileEntry) -> Gone:
    """A blob that a manifest names and the store does not have."""
    return Gone(f"{shown(url)} has no blob {entry.sha256[:12]} ('{entry.path}'); publish the version again")


def taken(url: str, manifest: Manifest) -> CheckpointError:
    """Two publishers of one version."""
    return CheckpointError(
        f"{shown(url)} already has another {manifest.reference}; versions never change: "
        "pull it, and publish yours as a later version"
    )


def first_line(error: BaseException) -> str:
    """The first line of an error's text."""
    return next(iter(str(error).strip().splitlines()), "")


def _protocols(files: Any) -> tuple[str, ...]:
    return (files.protocol,) if isinstance(files.protocol, str) else tuple(files.protocol)


@contextmanager
def disk_words(folder: Path) -> Iterator[None]:
    """Turn a full disk below `folder` into a CheckpointError that says what to do."""
    try:
        yield
    except OSError as error:
        if error.errno not in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG):
            raise
        raise CheckpointError(
            f"the disk of '{folder}' is full ({error.strerror}); free space and run the same command again: "
            "whole files that came are kept"
        ) from error
