"""A service in a thread: there while the block lasts, gone afterwards, also when the block fails."""

from __future__ import annotations

import socket
import threading
from pathlib import Path
from urllib.parse import urlsplit

import httpx
import pytest

from fedkd.serving.background import in_background
from fedkd.serving.registry_http import create_registry_app


def test_a_service_ends_with_its_block(tmp_path: Path) -> None:
    before = threading.active_count()
    with pytest.raises(RuntimeError), in_background(create_registry_app(tmp_path / "none")) as url:
        assert httpx.get(f"{url}/healthz").json() == {"status": "ok"}
        raise RuntimeError
    with pytest.raises(OSError):
        socket.create_connection(("127.0.0.1", urlsplit(url).port or 0), timeout=5)
    assert threading.active_count() <= before


def test_an_address_that_is_not_ours_is_an_error() -> None:
    with pytest.raises(OSError), in_background(lambda *_: None, host="192.0.2.1"):
        pass
