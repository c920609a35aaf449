"""An edge's spool: the folder of the synthetic sets that users have sent it, found by user and digest."""

from __future__ import annotations

import re
from pathlib import Path

from fedkd.checkpoints.manifest import check_name

DIGEST = re.compile(r"[0-9a-f]{64}")
KEPT = 4  # sets of one user that stay: this round's, and what a resumed server may still speak of


class Spool:
    """Sets that have come, as FOLDER/USER/SHA256.parquet; a file is there whole or not at all."""

    def __init__(self, folder: Path | str) -> None:
        self.folder = Path(folder)

    def path(self, user: str, digest: str) -> Path:
        """Where a user's set lies; ValueError for what is no user's name or no sha256."""
        if not DIGEST.fullmatch(digest):
            raise ValueError(f"'{digest[:80]}' is no sha256 in hexadecimal")
        return self.folder / check_name(user) / f"{digest}.parquet"

    def prune(self, user: str) -> None:
        """Delete a user's oldest sets but KEPT: a token cannot fill the disk."""
        sets = sorted((self.folder / user).glob("*.parquet"), key=lambda path: path.stat().st_mtime_ns)
        for path in sets[:-KEPT]:
            path.unlink(missing_ok=True)

    def sweep(self) -> None:
        """Delete what uploads left that were cut off by a kill; nobody may be uploading meanwhile."""
        for path in self.folder.glob("*/.*.part"):
            path.unlink(missing_ok=True)
