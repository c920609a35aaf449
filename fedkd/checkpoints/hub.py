"""Checkpoints on the Hugging Face Hub: a plain diffusers repository with a card, a tag a version."""

from __future__ import annotations

import hashlib
import os
import re
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from fedkd.checkpoints.card import model_card
from fedkd.checkpoints.manifest import MANIFEST_NAME, SIGNATURE_NAME, CheckpointError, FileEntry, Manifest
from fedkd.checkpoints.remotes import PIECE_BYTES, Remote, first_line, gone, taken

if TYPE_CHECKING:
    from fedkd.checkpoints.transfer import Moved

REPOSITORY = re.compile(r"hf:(?://)?(?P<owner>[\w.-]+)/(?P<name>[\w.-]+)(?:@(?P<revision>[\w./-]+))?")
CARD = "README.md"
SAMPLES = "samples"  # folder of the card's pictures
MAX_SAMPLES = 12


def repository(url: str) -> tuple[str, str]:
    """(`owner/name`, revision or '') of `hf:owner/name[@revision]`; CheckpointError when it is none."""
    found = REPOSITORY.fullmatch(url.rstrip("/"))
    if not found:
        raise CheckpointError(f"'{url}' names no repository of the Hugging Face Hub; write hf:OWNER/NAME")
    return f"{found['owner']}/{found['name']}", found["revision"] or ""


class HubRemote(Remote):
    """A repository that `push_to_hub` made, read like a registry: its files by content, its tags as versions."""

    writable = False  # `push_to_hub` makes one commit of many files

    def __init__(self, url: str, *, token: str = "") -> None:
        from huggingface_hub import HfFileSystem

        self.url, (self.repo, revision) = url, repository(url)
        self.revision = revision or "main"
        self.files = HfFileSystem(endpoint=endpoint(), token=token or None)
        self.root = f"{self.repo}@{self.revision}"

    def read(self, path: str) -> bytes | None:
        """The repository's file for a registry's path: names/NAME/ALIAS, versions/NAME/VERSION/FILE."""
        kind, name, *rest = path.split("/")
        main = self._file(self.revision, MANIFEST_NAME)
        if kind == "names":
            facts = _facts(main, self.url)
            return facts.version.encode() if facts and facts.name == name and rest == ["latest"] else None
        version, file = rest
        facts = _facts(main, self.url)
        at = self.revision if facts and (facts.name, facts.version) == (name, version) else version
        self.root = f"{self.repo}@{at}"
        return self._file(at, file)

    def _file(self, revision: str, file: str) -> bytes | None:
        with words(self.url):
            self.files.invalidate_cache()
            try:
                data: bytes = self.files.cat_file(f"{self.repo}@{revision}/{file}")
            except FileNotFoundError:
                return None
        return data

    def list(self, path: str) -> list[str]:
        """The name, or the versions, that the repository holds."""
        from huggingface_hub import HfApi

        facts = _facts(self._file(self.revision, MANIFEST_NAME), self.url)
        if facts is None:
            return []
        if path == "versions":
            return [facts.name]
        with words(self.url):
            tags = HfApi(endpoint=endpoint(), token=self.files.token).list_repo_refs(self.repo).tags
        known = {tag.name for tag in tags if re.fullmatch(r"v\d+", tag.name)} | {facts.version}
        return sorted(known, key=lambda version: int(version[1:])) if path == f"versions/{facts.name}" else []

    def chunks(self, entry: FileEntry, start: int) -> Iterator[bytes | memoryview]:
        """The bytes of the file that has this content, from `start` on."""
        while start < entry.size:
            end = min(start + 4 * PIECE_BYTES, entry.size)
            with words(self.url):
                try:
                    piece: bytes = self.files.cat_file(f"{self.root}/{entry.path}", start=start, end=end)
                except FileNotFoundError as error:
                    raise gone(self.url, entry) from error
            if not piece:
                return
            yield piece
            start += len(piece)


def push_to_hub(
    folder: Path,
    manifest: Manifest,
    url: str,
    *,
    token: str = "",
    progress: Callable[[int, int], None] | None = None,
    samples: list[Path] | None = None,
) -> Moved:
    """Commit a version's folder and its card to `hf:owner/name`, and tag the commit with the version.

    Only files whose content the repository lacks are sent; files of the version before that the new one no longer
    has are deleted in the same commit. CheckpointError when the tag names other content, or the hub refuses.
    """
    from huggingface_hub import CommitOperationAdd, CommitOperationDelete, HfApi
    from huggingface_hub.utils import disable_progress_bars

    from fedkd.checkpoints.transfer import Moved

    repo, revision = repository(url)
    api = HfApi(endpoint=endpoint(), token=token or None)
    pictures = {f"{SAMPLES}/{path.name}": path for path in (samples or [])[:MAX_SAMPLES]}
    card = model_card(manifest, repository=repo, samples=list(pictures))
    content: dict[str, Path | bytes] = {entry.path: folder / entry.path for entry in manifest.files}
    beside = [folder / name for name in (MANIFEST_NAME, SIGNATURE_NAME) if (folder / name).is_file()]
    content |= {path.name: path for path in beside} | pictures | {CARD: card.encode()}
    disable_progress_bars()
    with words(url):
        api.create_repo(repo, exist_ok=True)
        remote = HubRemote(url, token=token)
        there = remote._file(manifest.version, MANIFEST_NAME)
        published = _facts(there, url)
        if published is not None and (published.name, published.digest) != (manifest.name, manifest.digest):
            raise taken(url, manifest)
        before = _facts(remote._file(revision or "main", MANIFEST_NAME), url)
        held = _held(api, repo, revision or "main", list(content))
        lacking = {path: source for path, source in content.items() if not _same(source, held.get(path))}
        stale = {entry.path for entry in before.files} - set(content) if before else set()
        sizes = {path: _size(source) for path, source in lacking.items()}
        total = sum(sizes.values())
        if progress is not None and total:
            progress(0, total)
        if lacking or stale:
            operations: list[Any] = [
                CommitOperationAdd(
                    path_in_repo=path, path_or_fileobj=source if isinstance(source, bytes) else str(source)
                )
                for path, source in sorted(lacking.items())
            ] + [CommitOperationDelete(path_in_repo=path) for path in sorted(stale)]
            api.create_commit(
                repo, operations, commit_message=f"Publish {manifest.reference}", revision=revision or "main"
            )
        if published is None:
            api.create_tag(repo, tag=manifest.version, revision=revision or "main")
        if progress is not None and total:
            progress(total, total)
    saved = manifest.size_bytes - sum(entry.size for entry in manifest.files if entry.path in lacking)
    return Moved(total, saved, len(lacking), manifest.reference)


def endpoint() -> str:
    """The hub's address: $HF_ENDPOINT, or huggingface.co."""
    return (os.environ.get("HF_ENDPOINT") or "https://huggingface.co").rstrip("/")


@contextmanager
def words(url: str) -> Iterator[None]:
    """The hub's and the network's failures as CheckpointErrors in one line; FileNotFoundError passes."""
    import httpx
    from huggingface_hub.errors import HfHubHTTPError, HFValidationError, OfflineModeIsEnabled, RepositoryNotFoundError

    try:
        yield
    except RepositoryNotFoundError as error:
        raise CheckpointError(
            f"{url}: the hub has no such repository, or your token may not see it; give --token or HF_TOKEN"
        ) from error
    except HfHubHTTPError as error:
        status = error.response.status_code if error.response is not None else 0
        if status == 404 and isinstance(error, FileNotFoundError):
            raise
        if status in (401, 403):
            raise CheckpointError(f"{url}: the hub refuses the token ({status}); give --token or HF_TOKEN") from error
        raise CheckpointError(f"{url}: the hub answers {first_line(error)}") from error
    except (HFValidationError, OfflineModeIsEnabled) as error:
        raise CheckpointError(f"{url}: {first_line(error)}") from error
    except (httpx.HTTPError, ConnectionError, TimeoutError) as error:
        raise CheckpointError(f"{url} cannot be reached, or went away in mid-transfer: {first_line(error)}") from error


def _facts(text: bytes | None, url: str) -> Manifest | None:
    return None if text is None else Manifest.from_json(text.decode(errors="replace"))


def _held(api: Any, repo: str, revision: str, paths: list[str]) -> dict[str, Any]:
    """What the repository holds of the paths: {path: its file}."""
    return {file.path: file for file in api.get_paths_info(repo, paths, revision=revision) if hasattr(file, "blob_id")}


def _same(source: Path | bytes, held: Any) -> bool:
    """Whether the repository's file has this content: by sha256 for large files, by git's own sha1 for small ones."""
    if held is None or held.size != _size(source):
        return False
    if held.lfs is not None:
        return bool(held.lfs.sha256 == _digest(source, hashlib.sha256()))
    return bool(
        held.blob_id == _digest(source, hashlib.sha1(f"blob {_size(source)}\0".encode(), usedforsecurity=False))
    )


def _digest(source: Path | bytes, digest: Any) -> str:
    if isinstance(source, bytes):
        digest.update(source)
        return str(digest.hexdigest())
    with source.open("rb") as file:
        while piece := file.read(1 << 20):
            digest.update(piece)
    return str(digest.hexdigest())


def _size(source: Path | bytes) -> int:
    return len(source) if isinstance(source, bytes) else source.stat().st_size
