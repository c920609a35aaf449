"""One edge in a process of its own, shared by the tests of a session."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from fedkd.serving.loopback import serve_in_process


@pytest.fixture(scope="session")
def edge_url(tiny_folder: Path) -> Iterator[str]:
    """An edge serving the tiny model over HTTP, without a token."""
    with serve_in_process(str(tiny_folder), name="tiny", threads=1, num_inference_steps=4) as url:
        yield url
