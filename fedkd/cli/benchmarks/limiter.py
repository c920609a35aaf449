"""A link of a set bandwidth on this machine: a TCP proxy that lets only so many bits a second through, each way."""

from __future__ import annotations

import asyncio
import socket
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field

PIECE_BYTES = 1460  # a TCP segment: small against any message


@dataclass
class Limiter:
    """Counts and paces what passes; `bandwidth_bps` may be changed between two messages.

    Both directions have the full bandwidth, as on a full-duplex link; `up_bytes` flow to the server.
    """

    bandwidth_bps: float
    url: str = ""
    up_bytes: int = 0
    down_bytes: int = 0
    free_at: dict[str, float] = field(default_factory=lambda: {"up": 0.0, "down": 0.0})

    def reset(self, bandwidth_bps: float) -> None:
        """Set the bandwidth, and count from 0."""
        self.bandwidth_bps, self.up_bytes, self.down_bytes = bandwidth_bps, 0, 0

    async def pass_on(self, direction: str, data: bytes) -> None:
        """Wait until the last bit of `data` is through the link, after what stood before it."""
        if direction == "up":
            self.up_bytes += len(data)
        else:
            self.down_bytes += len(data)
        began = max(time.monotonic(), self.free_at[direction])
        self.free_at[direction] = began + 8 * len(data) / self.bandwidth_bps
        # sleep() oversleeps by some 0.1 ms; against the target time, that does not add up
        wait_s = self.free_at[direction] - time.monotonic()
        if wait_s > 0:
            await asyncio.sleep(wait_s)


@contextmanager
def limited(server_url: str, bandwidth_bps: float) -> Iterator[Limiter]:
    """A limiter before `server_url` (http://host:port), in a thread of its own, that ends with the block."""
    host, _, port = server_url.removeprefix("http://").rpartition(":")
    limiter = Limiter(bandwidth_bps)
    loop = asyncio.new_event_loop()
    thread = threading.Thread(target=loop.run_forever, daemon=True, name="limiter")
    thread.start()
    server = asyncio.run_coroutine_threadsafe(_listen(limiter, host, int(port)), loop).result(10)
    limiter.url = f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}"
    try:
        yield limiter
    finally:
        asyncio.run_coroutine_threadsafe(_end(server), loop).result(10)
        loop.call_soon_threadsafe(loop.stop)
        thread.join(10)
        loop.close()


async def _listen(limiter: Limiter, host: str, port: int) -> asyncio.Server:
    async def serve(near_in: asyncio.StreamReader, near_out: asyncio.StreamWriter) -> None:
        try:
            far_in, far_out = await asyncio.open_connection(host, port)
        except OSError:
            near_out.close()
            return
        for writer in (near_out, far_out):
            writer.get_extra_info("socket").setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        ways = (_pump(limiter, "up", near_in, far_out), _pump(limiter, "down", far_in, near_out))
        try:
            await asyncio.gather(*ways)
        except asyncio.CancelledError:
            return  # the limiter ends, and its loop with it
        finally:
            near_out.close()
            far_out.close()

    return await asyncio.start_server(serve, "127.0.0.1", 0)


async def _pump(limiter: Limiter, direction: str, source: asyncio.StreamReader, sink: asyncio.StreamWriter) -> None:
    try:
        while data := await source.read(PIECE_BYTES):
            await limiter.pass_on(direction, data)
            sink.write(data)
            await sink.drain()
        sink.write_eof()
    except (ConnectionError, OSError):
        return


async def _end(server: asyncio.Server) -> None:
    server.close()
    for task in asyncio.all_tasks() - {asyncio.current_task()}:
        task.cancel()
    await asyncio.sleep(0)
