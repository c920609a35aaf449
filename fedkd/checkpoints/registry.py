"""The registry: immutable, versioned, content-addressed checkpoints in a folder."""

from __future__ import annotations

import contextlib
import shutil
import uuid
from collections.abc import Callable, Iterable, Sequence
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from fedkd.checkpoints.blobs import BlobStore, flush, read_manifest, verify_folder, write_atomically
from fedkd.checkpoints.contents import check_folder
from fedkd.checkpoints.locks import WriterLocks
from fedkd.checkpoints.manifest import (
    MANIFEST_NAME,
    SIGNATURE_NAME,
    CheckpointError,
    Derivation,
    Manifest,
    check_name,
    check_version,
    in_its_place,
    ordered,
    scan_folder,
)
from fedkd.checkpoints.remotes import disk_words

ALIASES = ("latest", "candidate")


class Registry:
    """Checkpoints below `root`: blobs/sha256/, versions/NAME/vN/ (diffusers folders), names/NAME/ALIAS.

    Beside them pins/NAME/VERSION, and collected/NAME/VERSION.json: manifests of versions that gc removed, so that
    lineage stays whole and no version number is given twice.
    """

    def __init__(self, root: Path) -> None:
        self.root = root
        self.blobs = BlobStore(root)
        self.locks = WriterLocks(root)

    def names(self) -> list[str]:
        """Names with at least one version, sorted."""
        folder = self.root / "versions"
        found = [p.name for p in folder.iterdir() if p.is_dir()] if folder.is_dir() else []
        return sorted(name for name in found if self.versions(name))

    def versions(self, name: str) -> list[str]:
        """Versions of a name, oldest first: v0, v1, …"""
        return ordered(p.name for p in (self.root / "versions" / check_name(name)).glob("v*") if p.is_dir())

    def collected(self, name: str) -> list[str]:
        """Versions of a name that gc removed, oldest first."""
        return ordered(p.stem for p in (self.root / "collected" / check_name(name)).glob("v*.json"))

    def pins(self, name: str) -> list[str]:
        """Versions of a name that gc must keep because somebody pinned them, oldest first."""
        return ordered(p.name for p in (self.root / "pins" / check_name(name)).glob("v*"))

    def manifest(self, reference: str) -> Manifest:
        """The manifest of `name[:version|alias]`, without verifying the files."""
        folder = self.folder(reference)
        return in_its_place(read_manifest(folder), folder)

    def remembered(self, reference: str) -> Manifest | None:
        """The manifest of `name:version`, also after gc removed the version; None when it was never here."""
        name, _, version = reference.partition(":")
        gone = self.root / "collected" / check_name(name) / f"{check_version(version)}.json"
        if (self.root / "versions" / name / version).is_dir():
            return self.manifest(reference)
        return Manifest.from_json(gone.read_text(encoding="utf-8")) if gone.is_file() else None

    def resolve(self, reference: str) -> Path:
        """The verified folder of `name[:version|latest|candidate]` (latest when no version is given).

        Damaged files are replaced where the blob itself is intact.
        """
        folder = self.folder(reference)
        try:
            in_its_place(verify_folder(folder), folder)
        except CheckpointError:
            with contextlib.suppress(OSError), self.locks.writing():
                self._repair(in_its_place(read_manifest(folder), folder))
                return folder
            raise
        return folder

    def signature(self, reference: str) -> bytes:
        """The signature of a version; empty when it is not signed."""
        path = self.folder(reference) / SIGNATURE_NAME
        return path.read_bytes() if path.is_file() else b""

    def alias(self, name: str, alias: str) -> str | None:
        """The version an alias points at, or None."""
        path = self.root / "names" / check_name(name) / alias
        return path.read_text(encoding="utf-8").strip() if path.is_file() else None

    def folder(self, reference: str) -> Path:
        """The folder of `name[:version|alias]`, not verified; CheckpointError says what there is instead."""
        name, _, version = reference.partition(":")
        version, known = version or "latest", self.versions(name)
        if not known:
            names = ", ".join(self.names()) or "none"
            raise CheckpointError(f"no {version} version of '{name}' in '{self.root}'; known names: {names}")
        if version in ALIASES:
            version = self.alias(name, version) or version
        if version not in known:
            gone = "was removed by gc" if version in self.collected(name) else "is not there"
            aliases = [alias for alias in ALIASES if self.alias(name, alias) in known]
            raise CheckpointError(
                f"checkpoint '{name}:{version}' {gone} in '{self.root}'; known versions: {', '.join(known + aliases)}"
            )
        return self.root / "versions" / name / version

    def publish(
        self,
        folder: Path,
        *,
        name: str,
        parents: Sequence[str] = (),
        recipe_digest: str = "",
        round: int = 0,
        metrics: dict[str, Any] | None = None,
        alias: str = "latest",
        licence: str = "",
        base_model: str = "",
        sampling: dict[str, Any] | None = None,
        edges: Sequence[str] = (),
        derived: Sequence[Derivation] = (),
        sign: Callable[[Path], object] | None = None,
    ) -> Manifest:
        """Publish a diffusers folder as the next version and point `alias` at it.

        Versions are v0 (a first one without parents), v1, v2, …; each appears under its name only when whole.
        Publishing the same content with the same parents, recipe and round again returns the version that exists.
        `edges`: names of those that taught it. `derived`: which contents parents and LoRA files give.
        `sign(folder)` signs the finished folder before it gets its name.
        """
        check_alias(alias)
        files = scan_folder(folder)
        facts = (tuple(parents), recipe_digest, round, metrics or {}, licence, base_model, sampling or {}, tuple(edges))
        created = datetime.now(UTC).isoformat(timespec="seconds")
        draft = Manifest(check_name(name), "v0", files, *facts, created, tuple(derived))
        with self.locks.writing(), disk_words(self.root):
            for entry in files:
                self.blobs.put_file(folder / entry.path, entry)
            with self.locks.naming(name):
                existing = self.versions(name)
                earlier = self._same(draft, existing)
                if earlier is not None:
                    self._repair(earlier)
                    if sign is not None and not self.signature(earlier.reference):
                        sign(self.folder(earlier.reference))
                    self._advance(name, alias, earlier.version)
                    return earlier
                taken = ordered([*existing, *self.collected(name)])
                number = int(taken[-1][1:]) + 1 if taken else int(bool(parents))
                manifest = replace(draft, version=f"v{number}")
                self._build(manifest, sign, verified=True)
                self._point(name, alias, manifest.version)
        return manifest

    def install(
        self,
        text: str,
        *,
        signature: bytes = b"",
        alias: str = "",
        check: Callable[[Path], object] | None = None,
        verified: bool = False,
    ) -> Manifest:
        """Give a version from elsewhere its name, once all its blobs are here; CheckpointError when one lacks.

        `text`: its manifest.json, byte for byte. A version that is here already is repaired when it is the same,
        and left alone with a CheckpointError when it is another. `check(folder)` may refuse the finished
        folder before it gets its name. `alias` points at it afterwards, if given. `verified`: the caller, within
        `locks.writing()`, has just compared every blob with its digest.
        """
        manifest = Manifest.from_json(text)
        if alias:
            check_alias(alias)
        with self.locks.writing(), self.locks.naming(manifest.name):
            known = None
            with contextlib.suppress(CheckpointError):  # one that cannot be read is built again
                known = self.remembered(manifest.reference)
            if known is not None and replace(known, created="") != replace(manifest, created=""):
                raise CheckpointError(
                    f"'{self.root}' has another {manifest.reference} already, and versions never change; "
                    "publish it under another name"
                )
            if known is not None and manifest.version in self.versions(manifest.name):
                self._repair(manifest)
                folder = self.folder(manifest.reference)
                same = (folder / MANIFEST_NAME).read_bytes() == text.encode()
                if signature and same and not self.signature(manifest.reference):
                    write_atomically(folder / SIGNATURE_NAME, signature.decode())
                if check is not None:
                    check(folder)
            else:
                self._build(manifest, check, text=text, signature=signature, verified=verified)
            if alias:
                self._point(manifest.name, alias, manifest.version)
        return manifest

    def point(self, name: str, alias: str, version: str) -> None:
        """Make an alias point at a version that is there."""
        check_alias(alias)
        with self.locks.writing(), self.locks.naming(name):
            self._point(name, alias, self.folder(f"{name}:{version}").name)

    def _build(self, manifest: Manifest, before: Callable[[Path], object] | None = None, **how: Any) -> None:
        """Build a version beside its place, check what its files are, and rename it there.

        `before(folder)` is called before the renaming; `how` is for BlobStore.materialise.
        """
        target = self.root / "versions" / manifest.name / manifest.version
        part = self.root / "tmp" / f"{uuid.uuid4().hex}.part"
        part.mkdir(parents=True)
        try:
            self.blobs.materialise(manifest, part, **how)
            check_folder(part, manifest)
            if before is not None:
                before(part)
            target.parent.mkdir(parents=True, exist_ok=True)
            if target.exists():  # a damaged one
                target.rename(part.with_name(f"{part.name}.damaged"))
            part.rename(target)
            flush(target.parent)
        finally:
            for left in (part, part.with_name(f"{part.name}.damaged")):
                shutil.rmtree(left, ignore_errors=True)

    def _same(self, draft: Manifest, versions: Iterable[str]) -> Manifest | None:
        """The version with the draft's content, parents, recipe and round, if there is one."""
        for version in versions:
            with contextlib.suppress(CheckpointError):  # a damaged version stops nobody from publishing the next
                earlier = self.manifest(f"{draft.name}:{version}")
                if all(
                    getattr(earlier, fact) == getattr(draft, fact)
                    for fact in ("digest", "parents", "recipe_digest", "round")
                ):
                    return earlier
        return None

    def _repair(self, manifest: Manifest) -> None:
        self.blobs.repair(self.root / "versions" / manifest.name / manifest.version)

    def _advance(self, name: str, alias: str, version: str) -> None:
        """Point an alias at a version unless it points at a later one: publishing again never goes back."""
        now = self.alias(name, alias)
        if now is None or now not in self.versions(name) or int(now[1:]) < int(version[1:]):
            self._point(name, alias, version)

    def _point(self, name: str, alias: str, version: str) -> None:
        write_atomically(self.root / "names" / name / alias, version)


def check_alias(alias: str) -> None:
    """CheckpointError unless the text is one of the movable names."""
    if alias not in ALIASES:
        raise CheckpointError(f"alias '{alias}' is not known; use one of {', '.join(ALIASES)}")
