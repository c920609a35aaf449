"""Message contents: what arrives is what was sent, or it is refused."""

from __future__ import annotations

import json

import pytest
from flwr.app import Array, ArrayRecord, ConfigRecord, RecordDict

from clients.payload import BLOB, PayloadError, pack, size_bytes, unpack


def test_facts_and_blobs_arrive_as_they_were_sent() -> None:
    content = pack({"a": [1, 2.5, None]}, {"x": b"\x00\x01", "empty": b""})
    assert unpack(content, max_bytes=1000) == ({"a": [1, 2.5, None]}, {"x": b"\x00\x01", "empty": b""})
    assert size_bytes(content) > 2


def test_a_changed_blob_is_refused() -> None:
    content = pack({}, {"x": b"good"})
    content["files"] = ArrayRecord({"x": Array("uint8", (4,), BLOB, b"evil")})
    with pytest.raises(PayloadError, match="damaged"):
        unpack(content, max_bytes=1000)


def test_a_message_over_the_limit_is_refused() -> None:
    with pytest.raises(PayloadError, match="max_message_mb"):
        unpack(pack({}, {"x": bytes(2000)}), max_bytes=1000)


def test_numbers_that_are_not_finite_are_neither_sent_nor_accepted() -> None:
    with pytest.raises(PayloadError):
        pack({"loss": float("nan")})
    text = json.dumps({"schema": 1, "task": {"loss": float("inf")}, "files": {}})
    with pytest.raises(PayloadError, match="Infinity"):
        unpack(RecordDict({"task": ConfigRecord({"json": text})}), max_bytes=1000)


@pytest.mark.parametrize("number", ["1e999", "-1e999", "9" * 400])
def test_numbers_that_no_report_can_hold_are_refused(number: str) -> None:
    text = f'{{"schema": 1, "task": {{"audit": {number}}}, "files": {{}}}}'
    with pytest.raises(PayloadError, match=r"not a finite number|whole number of 400 digits"):
        unpack(RecordDict({"task": ConfigRecord({"json": text})}), max_bytes=1000)


@pytest.mark.parametrize("text", ["", "[]", "{}", '{"schema": 1}', '{"schema": 2, "task": {}, "files": {}}'])
def test_garbage_is_refused(text: str) -> None:
    with pytest.raises(PayloadError):
        unpack(RecordDict({"task": ConfigRecord({"json": text})}), max_bytes=1000)
    with pytest.raises(PayloadError):
        unpack(RecordDict(), max_bytes=1000)
