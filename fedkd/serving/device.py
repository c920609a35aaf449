"""The device's half of a split picture: fetch the denoiser once, do one's steps, exchange hand-offs."""

from __future__ import annotations

from typing import Any, Unpack

from fedkd.serving.async_client import AsyncEdgeClient
from fedkd.serving.connection import Connection
from fedkd.serving.device_side import DeviceClient
from fedkd.serving.fallback import DeviceCannot, Notice
from fedkd.serving.protocol import EdgeError
from fedkd.serving.split_client import Picture
from fedkd.serving.split_request import Plan, Progress, Side, SplitResult, Wish

__all__ = ["AsyncEdgeClient", "DeviceCannot", "EdgeClient", "EdgeError", "SplitResult"]


class EdgeClient(DeviceClient):
    """A device's connection to its edges, set up as `DeviceClient` says; a context manager, for one thread."""

    def _connect(self, token: str, timeout_s: float) -> None:
        self._connection = Connection(token=token, timeout_s=timeout_s)

    def __enter__(self) -> EdgeClient:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """End the connections."""
        self._connection.close()

    def model(self) -> dict[str, Any]:
        """What the edge serves: name, version, digest, files, scheduler, resolution, defaults, build."""
        return self._connection.run(self._side.describe_any())

    def same_build(self) -> bool:
        """Whether bit-for-bit equality is promised: same torch, diffusers, threads and kind of device."""
        return self._side.same_build(self.model())

    def prepare(self, decode: Side = "edge", model: str | None = None) -> None:
        """Fetch and load what this device needs of `model`, so that the first picture does not wait for it."""
        self._connection.run(self._side.prepare(decode, model))

    def generate(
        self,
        prompt: str,
        *,
        progress: Progress | None = None,
        notice: Notice | None = None,
        **plan: Unpack[Plan],
    ) -> SplitResult:
        """Draw one picture with an edge; `plan` holds the fields of `Wish`, such as `device_steps` and `seed`.

        `progress(done, total)` counts evaluations of both sides, and may be called from another thread;
        `notice(text)` hears of each fallback as it happens. EdgeError says what went wrong and what to do.
        """
        return self._connection.run(Picture(self._side, Wish(prompt, **plan), progress, notice).draw())
