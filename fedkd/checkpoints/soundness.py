"""Whether a checkpoint's folder is whole, allowed and trusted; read again only when a file of it was touched."""

from __future__ import annotations

import stat
from pathlib import Path

from fedkd.checkpoints.blobs import verify_folder
from fedkd.checkpoints.contents import check_folder
from fedkd.checkpoints.manifest import CheckpointError
from fedkd.checkpoints.signing import TrustPolicy, verify

_seen: dict[Path, tuple[list[tuple[str, int, int, int, int]], TrustPolicy]] = {}  # as this process last read them


def check_sound(folder: Path, digest: str, policy: TrustPolicy) -> None:
    """CheckpointError unless the folder has the content of `digest`, nothing refused, and a signature of `policy`."""
    look = (_look(folder), policy)
    if look[0] and _seen.get(folder) == look:
        return
    manifest = verify_folder(folder)
    if manifest.digest != digest:
        raise CheckpointError(f"'{folder}' holds another checkpoint than its name says; it has to be refreshed")
    check_folder(folder, manifest)
    verify(folder, policy)
    _seen[folder] = look


def remember_sound(folder: Path, policy: TrustPolicy) -> None:
    """Note that the folder was checked just now, while nobody else could change it."""
    _seen[folder] = (_look(folder), policy)


def _look(folder: Path) -> list[tuple[str, int, int, int, int]]:
    """What changes when anybody touches a file below `folder`; empty when it is not there."""
    return sorted(
        (str(path), facts.st_ino, facts.st_size, facts.st_mtime_ns, facts.st_ctime_ns)
        for path in folder.rglob("*")
        if not stat.S_ISDIR((facts := path.lstat()).st_mode)
    )
