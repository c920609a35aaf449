"""How an edge listens: connections that send their headers slowly, or never, are closed and hold no worker."""

from __future__ import annotations

import asyncio
from typing import Any

import uvicorn
from uvicorn.protocols.http.h11_impl import H11Protocol

HEADER_TIMEOUT_S = 20.0
KEEP_ALIVE_S = 75.0  # longer than a device usually computes between two requests


class PatientProtocol(H11Protocol):
    """uvicorn's HTTP/1.1, but that a request's headers have to come whole within `header_timeout_s`.

    uvicorn itself limits the size of headers and the pause between two requests, not the time headers take.
    """

    header_timeout_s = HEADER_TIMEOUT_S
    _headers_due: asyncio.TimerHandle | None = None

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        """Start the clock for the first request."""
        super().connection_made(transport)
        self._await_headers()

    def data_received(self, data: bytes) -> None:
        """Read on; the clock runs while headers are begun and not whole."""
        super().data_received(data)
        if self.cycle is None or self.cycle.response_complete:
            self._await_headers()
        else:
            self._stop_waiting()

    def connection_lost(self, exc: Exception | None) -> None:
        """Forget the clock."""
        self._stop_waiting()
        super().connection_lost(exc)

    def _await_headers(self) -> None:
        if self._headers_due is None and not self.transport.is_closing():
            self._headers_due = self.loop.call_later(self.header_timeout_s, self._give_up)

    def _stop_waiting(self) -> None:
        if self._headers_due is not None:
            self._headers_due.cancel()
            self._headers_due = None

    def _give_up(self) -> None:
        self._headers_due = None
        if not self.transport.is_closing():
            self.transport.close()


def server_config(app: Any, *, header_timeout_s: float = HEADER_TIMEOUT_S, **settings: Any) -> uvicorn.Config:
    """uvicorn's settings for an edge; `settings` are uvicorn's own and win."""
    protocol = type("EdgeProtocol", (PatientProtocol,), {"header_timeout_s": header_timeout_s})
    given: dict[str, Any] = {
        "log_level": "warning",
        "access_log": False,
        "timeout_keep_alive": int(KEEP_ALIVE_S),
        "timeout_graceful_shutdown": 5,
        "http": protocol,
        "ws": "none",
        **settings,
    }
    return uvicorn.Config(app, **given)
