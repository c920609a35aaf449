"""What an edge under soak answers: pictures, refusals, and requests to come again later."""

from __future__ import annotations

import asyncio
import io
from typing import Any

import httpx
from PIL import Image


class Refused(Exception):
    """The edge answered something else than what was asked for."""


async def asked(http: httpx.AsyncClient, path: str, **content: Any) -> httpx.Response:
    """A POST that is repeated as long as the edge says that it is busy; Refused for any other refusal."""
    while (answer := await http.post(path, **content)).status_code == 429:
        await asyncio.sleep(float(answer.headers["retry-after"]))
    if answer.status_code not in (200, 201):
        raise Refused(f"{path} answered {answer.status_code} {answer.text[:200]}")
    return answer


def opened(data: bytes) -> Image.Image:
    """The picture of a PNG; Refused when it is none."""
    try:
        image = Image.open(io.BytesIO(data))
        image.load()
        return image
    except (OSError, ValueError, SyntaxError) as error:
        raise Refused("what came is no picture") from error


def note_of(text: str) -> str:
    """A line of a report, no longer than that."""
    return " ".join(text.split())[:300]
