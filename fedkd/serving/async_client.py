"""The device's client for programs that live on an event loop; the same protocol as `EdgeClient`."""

from __future__ import annotations

import asyncio
from contextlib import suppress
from typing import Any, Unpack

from fedkd.serving.connection import AsyncConnection
from fedkd.serving.device_side import DeviceClient
from fedkd.serving.fallback import Notice
from fedkd.serving.protocol import EdgeError
from fedkd.serving.split_client import Picture
from fedkd.serving.split_request import Plan, Progress, Side, SplitResult, Wish


class AsyncEdgeClient(DeviceClient):
    """`fedkd.serving.device.EdgeClient` with awaitable methods; the device's steps run in a worker thread.

    Pictures asked for at the same time share the loaded denoiser and are drawn side by side. Cancelling
    `generate` ends the device's steps after the current one and tells the edge.
    """

    def _connect(self, token: str, timeout_s: float) -> None:
        self._connection = AsyncConnection(token=token, timeout_s=timeout_s)
        self._ready = asyncio.Lock()  # one fetch and one load at a time

    async def __aenter__(self) -> AsyncEdgeClient:
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.close()

    async def close(self) -> None:
        """End the connections."""
        await self._connection.close()

    async def model(self) -> dict[str, Any]:
        """What the edge serves: name, version, digest, files, scheduler, resolution, defaults, build."""
        return await self._connection.run(self._side.describe_any())

    async def same_build(self) -> bool:
        """Whether bit-for-bit equality is promised: same torch, diffusers, threads and kind of device."""
        return self._side.same_build(await self.model())

    async def prepare(self, decode: Side = "edge", model: str | None = None) -> None:
        """Fetch and load what this device needs of `model`, so that the first picture does not wait for it."""
        async with self._ready:
            await self._connection.run(self._side.prepare(decode, model))

    async def generate(
        self,
        prompt: str,
        *,
        progress: Progress | None = None,
        notice: Notice | None = None,
        **plan: Unpack[Plan],
    ) -> SplitResult:
        """Draw one picture with an edge; keywords and errors as `EdgeClient.generate` has them.

        `progress` and `notice` are called on the event loop's thread or on a worker's.
        """
        wish = Wish(prompt, **plan)
        if wish.device_steps:
            with suppress(EdgeError):  # the picture will do without, or say why it cannot
                await self.prepare(wish.decode, wish.model)
        return await self._connection.run(Picture(self._side, wish, progress, notice).draw())
