"""Moving a version between registries: only missing blobs, several at once, verified before they are named."""

from __future__ import annotations

import shutil
from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

from fedkd.checkpoints.derivation import Deriver, waves
from fedkd.checkpoints.fetching import Fetcher, Progress, Tally, distinct, side_by_side
from fedkd.checkpoints.manifest import (
    MANIFEST_NAME,
    SIGNATURE_NAME,
    VERSION,
    CheckpointError,
    FileEntry,
    Manifest,
    check_name,
    check_version,
)
from fedkd.checkpoints.registry import ALIASES, Registry
from fedkd.checkpoints.remotes import Remote, disk_words, open_remote, shown, taken, version_path

if TYPE_CHECKING:
    from fedkd.checkpoints.cache import CheckpointCache
    from fedkd.checkpoints.signing import TrustPolicy

JOBS = 4


@dataclass(frozen=True)
class Moved:
    """What a push or pull cost: bytes over the wire, bytes of the model that were there already, blobs moved."""

    bytes_moved: int
    bytes_saved: int
    blobs: int
    reference: str = ""  # name:version


def push(
    registry: Registry,
    reference: str,
    url: str,
    *,
    token: str = "",
    progress: Progress | None = None,
    jobs: int = JOBS,
    samples: Iterable[Path] = (),
) -> Moved:
    """Publish a version to the registry at `url`; it appears there when all its blobs do.

    A LoRA student's weights are not sent where their parent's lie: the LoRA file is. The aliases that point at it
    here point at it there afterwards. `samples` are pictures for the card that a Hugging Face repository gets.
    CheckpointError when the version is unknown or damaged, the place is read-only, or has another version of that
    name.
    """
    with registry.locks.writing():
        folder, manifest = registry.resolve(reference), registry.manifest(reference)
        if url.startswith("hf:"):
            from fedkd.checkpoints.hub import push_to_hub

            return push_to_hub(folder, manifest, url, token=token, progress=progress, samples=list(samples))
        text = (folder / MANIFEST_NAME).read_bytes()
        signature = registry.signature(manifest.reference)
        with closing(open_remote(url, token=token)) as remote, remote.writing():
            _refuse_read_only(remote)
            there = remote.read(f"{version_path(manifest.name, manifest.version)}/{MANIFEST_NAME}")
            if there is not None and Manifest.from_json(there.decode(errors="replace")).digest != manifest.digest:
                raise taken(remote.url, manifest)
            contents = distinct(manifest)
            with ThreadPoolExecutor(jobs) as pool:
                held = list(pool.map(remote.has, contents))
            lacking = [entry for entry, has in zip(contents, held, strict=True) if not has]
            tally = Tally(sum(entry.size for entry in lacking), progress)

            def put(entry: FileEntry) -> None:
                if entry in derivable and remote.make(manifest, entry):
                    tally.advance(entry.size, moved=False)
                else:
                    remote.put_blob(folder / entry.path, entry, tally.advance)

            plain, derivable = waves(manifest, lacking)
            for wave in (plain, derivable):
                side_by_side(jobs, tally, wave, put)
            letters = 0 if there is not None else len(text) + len(signature)
            remote.settle(manifest, there or text, signature if there in (None, text) else b"")
            for alias in ALIASES:
                if registry.alias(manifest.name, alias) == manifest.version:
                    remote.name(manifest.name, alias, manifest.version)
    return Moved(tally.moved + letters, manifest.size_bytes - tally.moved, len(lacking), manifest.reference)


def check_target(url: str) -> None:
    """CheckpointError when nothing can be published to `url`; asks nobody over the network."""
    if url.startswith("hf:"):
        from fedkd.checkpoints.hub import repository

        repository(url)
        return
    with closing(open_remote(url)) as remote:
        _refuse_read_only(remote)


def _refuse_read_only(remote: Remote) -> None:
    if not remote.writable:
        raise CheckpointError(
            f"{shown(remote.url)} is read-only; publish to a folder, s3:// or hf:, where others pull from"
        )


def pull(
    reference: str,
    url: str,
    target: Registry | CheckpointCache,
    *,
    token: str = "",
    progress: Progress | None = None,
    jobs: int = JOBS,
    policy: TrustPolicy | None = None,
) -> Moved:
    """Fetch `name[:version|alias]` (latest when none is given) from `url` into a registry, or into a cache to serve it.

    A broken transfer is gone on with by the next pull. `policy`: whose signature the version has to carry, checked
    before it gets its name (a cache has its own). CheckpointError names what is there when the version is unknown.
    """
    with closing(open_remote(url, token=token)) as remote:
        found = find(remote, reference)
        if isinstance(target, Registry):
            fetch = _into_registry(target, remote, found, progress, jobs, policy)
        else:
            fetch = _into_cache(target, remote, found, progress)
    manifest, moved = found.manifest, fetch.tally.moved
    letters = len(found.text) + len(found.signature)
    return Moved(moved + letters, max(0, manifest.size_bytes - moved), len(fetch.fetched), manifest.reference)


@dataclass(frozen=True)
class Found:
    """A version at a remote: its manifest, and that one's bytes; its signature (empty: none); the alias asked for."""

    manifest: Manifest
    text: bytes
    signature: bytes
    alias: str


def _into_registry(
    registry: Registry,
    remote: Remote,
    found: Found,
    progress: Progress | None,
    jobs: int,
    policy: TrustPolicy | None,
) -> Fetcher:
    from fedkd.checkpoints.signing import verify

    refuse_other(registry, found.manifest)
    with registry.locks.writing(), disk_words(registry.root):
        lacking = [entry for entry in distinct(found.manifest) if not registry.blobs.intact(entry)]
        check_room(registry.root, lacking)
        fetch = Fetcher(remote, Tally(sum(entry.size for entry in lacking), progress))
        parts = registry.root / "tmp" / "fetch"
        derive = Deriver(found.manifest, registry.blobs.find, fetch, parts, partial(fetch.tally.advance, moved=False))
        for wave in waves(found.manifest, lacking):
            side_by_side(jobs, fetch.tally, wave, partial(fetch.into, registry.blobs, parts, derive))
        derive.clear()
        check = partial(verify, policy=policy) if policy is not None else None
        text = found.text.decode()
        registry.install(text, signature=found.signature, alias=found.alias, check=check, verified=True)
    return fetch


def _into_cache(cache: CheckpointCache, remote: Remote, found: Found, progress: Progress | None) -> Fetcher:
    lacking = cache.missing(found.manifest)
    fetch = Fetcher(remote, Tally(sum(entry.size for entry in lacking), progress))
    with disk_words(cache.root):
        cache.activate(found.manifest, text=found.text.decode(), signature=found.signature, fetch=fetch)
    return fetch


def find(remote: Remote, reference: str) -> Found:
    """The version that a reference means at a remote; CheckpointError says what is there instead."""
    name, _, wanted = reference.partition(":")
    check_name(name)
    alias = (wanted or "latest") if (wanted or "latest") in ALIASES else ""
    version = wanted
    if alias:
        found = remote.read(f"names/{name}/{alias}")
        if found is None:
            raise _unknown(remote, name, f"no {alias} version of '{name}'")
        version = found.decode(errors="replace").strip()
        if not VERSION.fullmatch(version):
            raise CheckpointError(f"{shown(remote.url)} names no version for {alias} of '{name}'; is it a registry?")
    check_version(version)
    place = version_path(name, version)
    text = remote.read(f"{place}/{MANIFEST_NAME}")
    if text is None:
        raise _unknown(remote, name, f"no checkpoint '{name}:{version}'")
    try:
        manifest = Manifest.from_json(text.decode())
    except UnicodeDecodeError as error:
        raise CheckpointError(
            f"{shown(remote.url)} sends no {MANIFEST_NAME} for {name}:{version}; is it a registry?"
        ) from error
    if manifest.reference != f"{name}:{version}":
        raise CheckpointError(
            f"{shown(remote.url)} sends {manifest.reference} for {name}:{version}; it is not to be used"
        )
    return Found(manifest, text, remote.read(f"{place}/{SIGNATURE_NAME}") or b"", alias)


def _unknown(remote: Remote, name: str, what: str) -> CheckpointError:
    versions = remote.list(f"versions/{name}")
    known = f"known versions: {', '.join(versions)}" if versions else ""
    if not known:
        names = remote.list("versions")
        known = f"known names: {', '.join(names)}" if names else "it lists no checkpoints"
    return CheckpointError(f"{what} at {shown(remote.url)}; {known}")


def refuse_other(registry: Registry, manifest: Manifest) -> None:
    """CheckpointError when the registry holds another version under the same name."""
    if manifest.version in registry.versions(manifest.name):
        held = registry.manifest(manifest.reference)
        if held.digest != manifest.digest:
            raise taken(str(registry.root), manifest)


def check_room(root: Path, lacking: list[FileEntry]) -> None:
    """CheckpointError when the disk cannot take the blobs."""
    root.mkdir(parents=True, exist_ok=True)
    need, free = sum(entry.size for entry in lacking), shutil.disk_usage(root).free
    if need > free:
        raise CheckpointError(f"the disk of '{root}' has {free} bytes free, and {need} are to come; free some space")
