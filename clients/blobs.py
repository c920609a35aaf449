"""Where a node gets a checkpoint's blobs: from the instruction that it carries out, else from a registry's URL."""

from __future__ import annotations

import os
import threading
from collections.abc import Mapping
from pathlib import Path

from fedkd.checkpoints.fetching import Fetcher, fetcher
from fedkd.checkpoints.manifest import CheckpointError, FileEntry

TOKEN = "FEDKD_TOKEN"  # environment of the node's process: bearer token for a registry over HTTP


class BlobSource:
    """`source(entry, path)` writes a blob's content to the path, as a cache asks for it; it may be called by threads.

    `files` are the blobs that came along, by sha256; `url` is the registry for the others (empty: there is none).
    """

    def __init__(self, files: Mapping[str, bytes], url: str = "") -> None:
        self.files, self.url = files, url
        self._pull: Fetcher | None = None
        self._lock = threading.Lock()

    def __call__(self, entry: FileEntry, part: Path) -> None:
        """Bring one blob; CheckpointError when it cannot be had."""
        data = self.files.get(entry.sha256)
        if data is not None:
            part.write_bytes(data)
        elif self.url:
            self._opened()(entry, part)
        else:
            raise CheckpointError(f"blob {entry.sha256[:12]} of '{entry.path}' is not here and was not sent")

    def _opened(self) -> Fetcher:
        with self._lock:
            if self._pull is None:
                self._pull = fetcher(self.url, token=os.environ.get(TOKEN, ""))
            return self._pull

    @property
    def pulled(self) -> int:
        """Bytes that came from the registry so far."""
        return self._pull.tally.moved if self._pull is not None else 0

    def close(self) -> None:
        """Let connections go."""
        if self._pull is not None:
            self._pull.remote.close()
