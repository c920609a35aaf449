"""Fetching a model's files by digest, going on where an earlier attempt stopped, into a cache folder."""

from __future__ import annotations

import hashlib
import os
import re
import shutil
import uuid
from pathlib import Path
from typing import Any

import httpx

SAFE_NAME = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_.-]{0,200}")
DIGEST = re.compile(r"[0-9a-f]{64}")
CHUNK_BYTES = 1 << 20


class FetchError(ValueError):
    """A file that could not be fetched whole, or is not what its digest says."""


def default_cache() -> Path:
    """`$XDG_CACHE_HOME/fedkd` or `~/.cache/fedkd`."""
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "fedkd"


def fetch_blob(client: httpx.Client, digest: str, size_bytes: int, cache: Path) -> tuple[Path, int]:
    """The cached file with this sha256, and the bytes that had to be fetched for it.

    What an interrupted fetch left behind (`.part`) is gone on with by `Range` and `If-Range`. FetchError
    when the edge does not have the file or sends something else.
    """
    if not DIGEST.fullmatch(digest):
        raise FetchError(f"the edge names a file by {digest[:20]!r}, which is no sha256")
    blob = cache / "blobs" / digest
    if blob.is_file() and blob.stat().st_size == size_bytes:
        return blob, 0
    blob.parent.mkdir(parents=True, exist_ok=True)
    part = blob.with_name(f"{digest}.part")
    fetched = 0
    for _ in range(2):  # a part that turns out wrong is thrown away, and fetched once more from nothing
        fetched += _go_on(client, digest, size_bytes, part)
        if _digest(part) == digest:
            os.replace(part, blob)
            return blob, fetched
        part.unlink(missing_ok=True)
    raise FetchError(f"the edge sent a file that does not have the digest {digest[:12]} it names")


def _go_on(client: httpx.Client, digest: str, size_bytes: int, part: Path) -> int:
    have = part.stat().st_size if part.is_file() else 0
    headers = {"Accept-Encoding": "identity"}
    if have:
        headers |= {"Range": f"bytes={have}-", "If-Range": f'"{digest}"'}
    with client.stream("GET", f"/v1/components/{digest}", headers=headers) as response:
        if response.status_code == 416:  # all is here already: let the digest decide
            return 0
        if response.status_code not in (200, 206):
            raise FetchError(
                f"the edge answers {response.status_code} for the file {digest[:12]}; connect again"
            )
        count = 0
        with part.open("ab" if response.status_code == 206 else "wb") as file:
            for chunk in response.iter_bytes(CHUNK_BYTES):
                count += len(chunk)
                if count > size_bytes:
                    raise FetchError(f"the edge sends more than the {size_bytes} bytes of {digest[:12]}")
                file.write(chunk)
        return count


def _digest(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def fetch_component(
    client: httpx.Client, model: dict[str, Any], component: str, cache: Path
) -> tuple[Path, int]:
    """The local folder of a component ('unet', 'vae'…) of the model, and the bytes fetched for it."""
    files = [file for file in model["files"] if file["component"] == component]
    if not files or not SAFE_NAME.fullmatch(component):
        raise FetchError(f"the edge's model has no component {component!r}")
    folder = cache / "models" / str(model["digest"])[:64] / component
    if not DIGEST.fullmatch(str(model["digest"])):
        raise FetchError("the edge names its model by something that is no sha256")
    blobs, fetched = {}, 0
    for file in files:
        if not SAFE_NAME.fullmatch(str(file["name"])):
            raise FetchError(f"the edge names a file {file['name']!r}, which is not allowed")
        blobs[file["name"]], count = fetch_blob(client, file["sha256"], int(file["size_bytes"]), cache)
        fetched += count
    if not folder.is_dir():
        _assemble(folder, blobs)
    return folder, fetched


def _assemble(folder: Path, blobs: dict[str, Path]) -> None:
    part = folder.with_name(f".{folder.name}.{uuid.uuid4().hex[:8]}.part")
    part.mkdir(parents=True)
    for name, blob in blobs.items():
        try:
            os.link(blob, part / name)
        except OSError:
            shutil.copyfile(blob, part / name)
    try:
        os.replace(part, folder)
    except OSError:  # someone else was first
        shutil.rmtree(part)
