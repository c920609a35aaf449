"""No private picture leaves a user: every message and every file is searched for its pixels and its PNG."""

from __future__ import annotations

import io

import numpy as np
from flwr.app import ArrayRecord, Message

from clients.payload import unpack
from fedkd.data.packing import unpack_dataset
from fedkd.data.partition import user_images
from tests.server.conftest import Done


def needles(done: Done) -> tuple[list[bytes], set[bytes]]:
    """Byte strings that would give a private picture away (pixels, PNG), and pixels to compare with."""
    found, pixels = [], set()
    for user in range(done.recipe.federation.users):
        for row in user_images(done.recipe, user):
            raw = np.asarray(row["image"].convert("RGB")).tobytes()
            pixels.add(raw)
            png = io.BytesIO()
            row["image"].convert("RGB").save(png, "PNG")
            found += [raw, raw[:96], png.getvalue(), png.getvalue()[60:]]
    return found, pixels


def blobs_of(message: Message) -> list[bytes]:
    blobs = []
    for record in message.content.values():
        if isinstance(record, ArrayRecord):
            blobs += [array.data for array in record.values()]
        else:
            blobs += [str(value).encode() for value in record.values()]
    return blobs


def test_no_message_and_no_file_carries_a_private_picture(undisturbed: Done) -> None:
    grid = undisturbed.federation.grid
    messages = [*grid.sent, *grid.received]  # type: ignore[attr-defined]
    found, pixels = needles(undisturbed)
    assert len(found) == 48 and len(messages) > 20
    haystacks = [blob for message in messages for blob in blobs_of(message)]
    haystacks += [path.read_bytes() for path in undisturbed.run.rglob("*") if path.is_file()]
    for haystack in haystacks:
        assert not any(needle in haystack for needle in found)
    sets = 0
    for message in messages:
        _, files = unpack(message.content, max_bytes=2**30)
        for name, data in files.items():
            if name == "set" or name.startswith("user-"):
                sets += 1
                for row in unpack_dataset(data):
                    assert np.asarray(row["image"].convert("RGB")).tobytes() not in pixels
    assert sets >= 16  # four users, two rounds, up to the server and down to the edges
