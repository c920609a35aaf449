"""Devices of a soak that speak the protocol by hand: one that does its share, and those that vanish."""

from __future__ import annotations

import asyncio
import json
import random
import secrets
import socket
import struct
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit

import httpx
from PIL import Image

from fedkd.cli.benchmarks.soak_answers import Refused, asked, opened
from fedkd.cli.benchmarks.soak_edge import SoakEdge
from fedkd.cli.benchmarks.soak_reference import Drawn, References
from fedkd.inference.denoiser import denoise, hand_off, take_up
from fedkd.inference.handoff import HandOff

if TYPE_CHECKING:
    from collections.abc import Mapping

LEFT, HALF, RESET, WATCHED = (
    "after opening",
    "in the middle of its hand-off",
    "while the edge computed",
    "as it watched",
)


@dataclass
class SplitDevice:
    """A device that holds whatever version the hand-off names, so that the picture's version is known."""

    edge: SoakEdge
    references: References
    http: httpx.AsyncClient
    dice: random.Random
    stolen: int = 0

    async def draw(self, drawn: Drawn, exact: bool, thief: Mapping[str, str]) -> tuple[Image.Image, bool, str]:
        """The picture, whether it was said to be exact, and the digest of the model that drew it.

        Now and then latents travel as fp16; an edge that calls that exact says so wrongly (Refused).
        """
        body = {**drawn.body, "exact": exact, "wire": "fp16" if self.dice.random() < 0.2 else "exact"}
        body |= {"device_steps": self.dice.randint(0, drawn.steps), "with_conditions": True}
        body |= {"order": "device_first" if self.dice.random() < 0.5 else "edge_first"}
        answer = await asked(self.http, "/v1/sessions", json=body)
        found = HandOff.from_bytes(answer.content)
        folder, steps = self.edge.folders[found.model], int(body["device_steps"])
        data = await asyncio.to_thread(self._own_steps, answer.content, steps, folder, str(body["wire"]))
        path = f"{answer.headers['location']}/handoff"
        if thief and self.dice.random() < 0.1:
            theft = await self.http.post(path, content=data, headers=thief)
            self.stolen += theft.status_code != 404
        answer = await asked(self.http, path, content=data)
        said = answer.headers["x-fedkd-exact"] == "true"
        if said != (body["wire"] == "exact") and (exact or said):
            raise Refused(f"exact={said} for exact={exact} and wire={body['wire']}")
        return opened(answer.content), said, found.model

    def _own_steps(self, data: bytes, steps: int, folder: Any, wire: Any) -> bytes:
        job = take_up(HandOff.from_bytes(data))
        model = HandOff.from_bytes(data).model
        denoise(self.references.denoiser(folder), job, job.step + steps)
        return hand_off(job, model, with_conditions=False).to_bytes(form=wire)


async def vanish(dice: random.Random, edge: SoakEdge, name: str, http: httpx.AsyncClient, drawn: Drawn) -> str:
    """Begin a split picture and go away without a word, in one of four ways; which."""
    how = dice.choice((LEFT, HALF, RESET, WATCHED))
    body = {**drawn.body, "device_steps": dice.randint(1, drawn.steps - 1)}
    if how == RESET:
        body |= {"order": "edge_first", "num_inference_steps": 200, "device_steps": 1}
        await cut_off(edge, name, "/v1/sessions", json.dumps(body).encode(), dice.uniform(0.02, 0.5))
        return how
    if how == WATCHED:
        body |= {"order": "edge_first", "num_inference_steps": 60, "id": secrets.token_hex(16)}
        path = f"/v1/sessions/{body['id']}/events?previews=2&wait_s=5"
        await asyncio.gather(
            cut_off(edge, name, "/v1/sessions", json.dumps(body).encode(), dice.uniform(0.1, 0.5)),
            cut_off(edge, name, path, b"", dice.uniform(0.1, 0.5), method="GET"),
        )
        return how
    answer = await asked(http, "/v1/sessions", json=body)
    if how == HALF:
        await cut_off(
            edge, name, f"{answer.headers['location']}/handoff", answer.content, dice.uniform(0, 0.3), part=0.5
        )
    return how


async def cut_off(
    edge: SoakEdge, name: str, path: str, body: bytes, after_s: float, *, part: float = 1.0, method: str = "POST"
) -> None:
    """Send a request, or a `part` of its body, on a connection of its own, and reset that after `after_s`."""
    place = urlsplit(edge.url)
    _, writer = await asyncio.open_connection(place.hostname, place.port)
    head = {"Host": place.netloc, "Content-Length": str(len(body)), **edge.headers(name)}
    lines = "".join(f"{key}: {value}\r\n" for key, value in head.items())
    writer.write(f"{method} {path} HTTP/1.1\r\n{lines}\r\n".encode() + body[: int(part * len(body))])
    await writer.drain()
    await asyncio.sleep(after_s)
    raw = writer.get_extra_info("socket")
    raw.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    writer.transport.abort()
