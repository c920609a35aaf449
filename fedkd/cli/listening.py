"""What the verbs that serve share: a bound socket, and a server that runs on it until Ctrl-C."""

from __future__ import annotations

import socket
from typing import Any

from fedkd.cli.console import fail


def listen(host: str, port: int) -> socket.socket:
    """A socket that listens on `host`:`port` (0: a free one); a user's mistake when that cannot be had."""
    try:
        family, kind, _, _, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0]
        listener = socket.socket(family, kind)
        try:
            listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            listener.bind(address)
            listener.listen(128)
        except OSError:
            listener.close()
            raise
        return listener
    except OSError as error:
        fail(f"cannot listen on {host}:{port}: {error.strerror}; give another --port, or 0 for a free one")


def url_of(listener: socket.socket) -> str:
    """The URL at which the socket is reached."""
    address, port = listener.getsockname()[:2]
    return f"http://[{address}]:{port}" if ":" in address else f"http://{address}:{port}"


def run(app: Any, listener: socket.socket, what: str) -> None:
    """Serve `app` on the socket until Ctrl-C; a user's mistake when it does not come up."""
    import uvicorn

    from fedkd.serving.connections import server_config

    server = uvicorn.Server(server_config(app))
    server.run(sockets=[listener])
    if not server.started:
        fail(f"{what} could not start at {url_of(listener)}; see the lines above")
