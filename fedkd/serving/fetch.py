"""Fetching a model's files by digest, going on where an earlier attempt stopped, into a cache folder."""

from __future__ import annotations

import hashlib
import os
import re
import shutil
import uuid
from pathlib import Path
from typing import Any

from fedkd.serving.protocol import Download, EdgeLost, EdgeUnreachable, Steps, Work

SAFE_NAME = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_.-]{0,200}")
DIGEST = re.compile(r"[0-9a-f]{64}")


class FetchError(EdgeLost):
    """A file that could not be fetched whole, or is not what its digest says."""


def default_cache() -> Path:
    """`$XDG_CACHE_HOME/fedkd` or `~/.cache/fedkd`."""
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "fedkd"


def fetch_blob(edge: str, digest: str, size_bytes: int, cache: Path) -> Steps[tuple[Path, int]]:
    """The cached file with this sha256, and the bytes that had to be fetched for it.

    What an interrupted fetch left behind (`.part`, from whichever edge) is gone on with by `Range` and
    `If-Range`. FetchError when the edge does not have the file or sends something else; EdgeUnreachable
    when it falls silent.
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
        fetched += yield from _go_on(edge, digest, size_bytes, part)
        if (yield Work(lambda: _digest(part))) == digest:
            os.replace(part, blob)
            return blob, fetched
        part.unlink(missing_ok=True)
    raise FetchError(f"the edge sent a file that does not have the digest {digest[:12]} it names")


def _go_on(edge: str, digest: str, size_bytes: int, part: Path) -> Steps[int]:
    have = part.stat().st_size if part.is_file() else 0
    headers = {"Accept-Encoding": "identity"}
    if have:
        headers |= {"Range": f"bytes={have}-", "If-Range": f'"{digest}"'}
    status, count = yield Download(edge, f"/v1/components/{digest}", headers, part, size_bytes)
    if status == 416:  # all is here already: let the digest decide
        return 0
    if status in (429, 500, 502, 503, 504):
        raise EdgeUnreachable(f"the edge at {edge} answers {status} for the file {digest[:12]}")
    if status not in (200, 206):
        raise FetchError(f"the edge answers {status} for the file {digest[:12]}; connect again")
    if count > size_bytes:
        part.unlink(missing_ok=True)
        raise FetchError(f"the edge sends more than the {size_bytes} bytes of {digest[:12]}")
    return count


def _digest(path: Path) -> str:
    if not path.is_file():
        return ""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def files_of(model: dict[str, Any], component: str) -> list[dict[str, Any]]:
    """The files of a component ('unet', 'vae'…) in what an edge says of its model, their names checked."""
    try:
        files = [file for file in model["files"] if file["component"] == component]
        names = [str(file["name"]) for file in files]
        sizes = [int(file["size_bytes"]) for file in files]
        digests = [str(file["sha256"]) for file in files]
    except (KeyError, TypeError, ValueError) as error:
        raise FetchError("the edge describes its model in a form this device cannot read") from error
    for name in names:
        if not SAFE_NAME.fullmatch(name):
            raise FetchError(f"the edge names a file {name!r}, which is not allowed")
    if not files or not SAFE_NAME.fullmatch(component):
        raise FetchError(f"the edge's model has no component {component!r}")
    return [
        {"name": name, "size_bytes": size, "sha256": digest}
        for name, size, digest in zip(names, sizes, digests, strict=True)
    ]


def fetch_component(edge: str, model: dict[str, Any], component: str, cache: Path) -> Steps[tuple[Path, int]]:
    """The local folder of a component of the model that `edge` describes, and the bytes fetched for it."""
    files = files_of(model, component)
    if not DIGEST.fullmatch(str(model.get("digest"))):
        raise FetchError("the edge names its model by something that is no sha256")
    folder = cache / "models" / str(model["digest"]) / component
    blobs, fetched = {}, 0
    for file in files:
        blobs[file["name"]], count = yield from fetch_blob(edge, file["sha256"], file["size_bytes"], cache)
        fetched += count
    if not folder.is_dir():
        yield Work(lambda: _assemble(folder, blobs))
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
