"""The registry: immutable, versioned, content-addressed checkpoints in a folder."""

from __future__ import annotations

import shutil
import uuid
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from fedkd.checkpoints.blobs import BlobStore, verify_folder, write_atomically
from fedkd.checkpoints.manifest import MANIFEST_NAME, CheckpointError, Manifest, check_name, scan_folder

ALIASES = ("latest", "candidate")


class Registry:
    """Checkpoints below `root`: blobs/sha256/, versions/NAME/vN/ (diffusers folders), names/NAME/ALIAS."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self.blobs = BlobStore(root)

    def names(self) -> list[str]:
        """Names with at least one version, sorted."""
        folder = self.root / "versions"
        return sorted(p.name for p in folder.iterdir() if p.is_dir()) if folder.is_dir() else []

    def versions(self, name: str) -> list[str]:
        """Versions of a name, oldest first: v0, v1, …"""
        folder = self.root / "versions" / check_name(name)
        found = [p.name for p in folder.glob("v*") if p.name[1:].isdigit()] if folder.is_dir() else []
        return sorted(found, key=lambda version: int(version[1:]))

    def manifest(self, reference: str) -> Manifest:
        """The manifest of `name[:version|alias]`, without verifying the files."""
        path = self._folder(reference) / MANIFEST_NAME
        try:
            return Manifest.from_json(path.read_text(encoding="utf-8"))
        except OSError as error:
            raise CheckpointError(
                f"'{reference}' has no readable {MANIFEST_NAME}; publish it again"
            ) from error

    def resolve(self, reference: str) -> Path:
        """The verified folder of `name[:version|latest|candidate]` (latest when no version is given)."""
        folder = self._folder(reference)
        verify_folder(folder)
        return folder

    def alias(self, name: str, alias: str) -> str | None:
        """The version an alias points at, or None."""
        path = self.root / "names" / check_name(name) / alias
        return path.read_text(encoding="utf-8").strip() if path.is_file() else None

    def _folder(self, reference: str) -> Path:
        name, _, version = reference.partition(":")
        version = version or "latest"
        if version in ALIASES:
            target = self.alias(name, version)
            if target is None:
                known = ", ".join(self.names()) or "none"
                raise CheckpointError(
                    f"no {version} version of '{name}' in the registry; known names: {known}"
                )
            version = target
        folder = self.root / "versions" / check_name(name) / check_name(version)
        if not folder.is_dir():
            known = ", ".join(self.versions(name)) or "none"
            raise CheckpointError(
                f"no checkpoint '{name}:{version}' in the registry; known versions: {known}"
            )
        return folder

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
    ) -> Manifest:
        """Publish a diffusers folder as the next version and point `alias` at it.

        Versions are v0 (a first one without parents), v1, v2, …; each appears under its name only when whole.
        Publishing the same content with the same parents, recipe and round again returns the version that exists.
        """
        if alias not in ALIASES:
            raise CheckpointError(f"alias '{alias}' is not known; use one of {', '.join(ALIASES)}")
        files = scan_folder(folder)
        origin = (tuple(parents), recipe_digest, round)
        draft = Manifest(check_name(name), "v0", files, *origin, metrics or {}, licence, base_model, sampling or {})
        for version in self.versions(name):
            earlier = self.manifest(f"{name}:{version}")
            same_origin = (earlier.parents, earlier.recipe_digest, earlier.round) == origin
            if earlier.digest == draft.digest and same_origin:
                self._point(name, alias, version)
                return earlier
        for entry in files:
            self.blobs.put_file(folder / entry.path, entry)
        existing = self.versions(name)
        number = int(existing[-1][1:]) + 1 if existing else int(bool(parents))
        while True:
            manifest = Manifest(name, f"v{number}", files, *origin, metrics or {}, licence, base_model, sampling or {})
            if self._settle(manifest):
                self._point(name, alias, manifest.version)
                return manifest
            number += 1

    def _settle(self, manifest: Manifest) -> bool:
        """Build the version beside its place and rename it there; False when the place is taken."""
        target = self.root / "versions" / manifest.name / manifest.version
        if target.exists():
            return False
        part = self.root / "tmp" / f"{uuid.uuid4().hex}.part"
        part.mkdir(parents=True)
        try:
            self.blobs.materialise(manifest, part)
            target.parent.mkdir(parents=True, exist_ok=True)
            part.rename(target)
        except OSError:
            if target.is_dir():  # another publisher took the number
                return False
            raise
        finally:
            shutil.rmtree(part, ignore_errors=True)
        return True

    def _point(self, name: str, alias: str, version: str) -> None:
        write_atomically(self.root / "names" / name / alias, version)
