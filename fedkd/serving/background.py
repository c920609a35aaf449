"""An HTTP service beside what this process does, for as long as a block of code needs it."""

from __future__ import annotations

import socket
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

START_S = 30.0
STOP_S = 5.0


@contextmanager
def in_background(app: Any, host: str = "127.0.0.1") -> Iterator[str]:
    """Serve an ASGI app from a thread at a free port; yields its URL, and ends it with the block.

    OSError when it cannot listen or does not start.
    """
    import uvicorn

    with socket.create_server((host, 0)) as listener:
        config = uvicorn.Config(app, log_level="error", lifespan="off", ws="none", timeout_graceful_shutdown=1)
        server = uvicorn.Server(config)
        thread = threading.Thread(target=server.run, kwargs={"sockets": [listener]}, daemon=True)
        thread.start()
        deadline = time.monotonic() + START_S
        try:
            while not server.started:
                if not thread.is_alive() or time.monotonic() > deadline:
                    raise OSError(f"the service at {host} did not start")
                time.sleep(0.01)
            yield f"http://{host}:{listener.getsockname()[1]}"
        finally:
            server.should_exit = True
            thread.join(STOP_S)
