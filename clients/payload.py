"""What travels between server and clients: a JSON task and named blobs, each with its digest and size."""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Mapping
from typing import Any

from flwr.app import Array, ArrayRecord, ConfigRecord, RecordDict

SCHEMA = 1
BLOB = "fedkd/raw"
LONGEST_INT = 20  # digits of a whole number that a float still holds and a page can show


class PayloadError(ValueError):
    """A message whose content is malformed, damaged, not finite or too large."""


def pack(task: Mapping[str, Any], files: Mapping[str, bytes] | None = None) -> RecordDict:
    """A message content from JSON-able facts and named blobs; PayloadError when a number is not finite."""
    files = dict(files or {})
    listed = {name: {"sha256": hashlib.sha256(data).hexdigest(), "size": len(data)} for name, data in files.items()}
    try:
        text = json.dumps({"schema": SCHEMA, "task": dict(task), "files": listed}, allow_nan=False)
    except (ValueError, TypeError) as error:
        raise PayloadError(f"the answer cannot be sent: {error}") from error
    content = RecordDict({"task": ConfigRecord({"json": text})})
    arrays = {name: Array("uint8", (len(data),), BLOB, data) for name, data in files.items() if data}
    if arrays:
        content["files"] = ArrayRecord(arrays)
    return content


def _refuse_constant(name: str) -> float:
    raise PayloadError(f"the message holds {name}, which is not a finite number")


def _finite(text: str) -> float:
    return value if math.isfinite(value := float(text)) else _refuse_constant(text[:40])


def _whole(text: str) -> int:
    if len(text) > LONGEST_INT:
        raise PayloadError(f"the message holds a whole number of {len(text)} digits, which is none of ours")
    return int(text)


def unpack(content: RecordDict, *, max_bytes: int) -> tuple[dict[str, Any], dict[str, bytes]]:
    """The task and the blobs of a message, each blob checked against its digest; PayloadError otherwise."""
    size = size_bytes(content)
    if size > max_bytes:
        raise PayloadError(f"the message has {size} bytes, more than {max_bytes}; raise federation.max_message_mb")
    try:
        envelope = json.loads(
            str(content["task"]["json"]), parse_constant=_refuse_constant, parse_float=_finite, parse_int=_whole
        )
        schema, task, listed = envelope["schema"], dict(envelope["task"]), dict(envelope["files"])
        arrays = dict(content["files"]) if "files" in content else {}
        expected = {str(name): (str(facts["sha256"]), int(facts["size"])) for name, facts in listed.items()}
    except PayloadError:
        raise
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise PayloadError(f"the message is malformed: {type(error).__name__}: {error}") from error
    if schema != SCHEMA:
        raise PayloadError(f"the message has schema {schema!r}, this side speaks {SCHEMA}; install the same fedkd")
    if set(arrays) - set(expected):
        raise PayloadError("the message carries files that it does not list")
    files = {}
    for name, (digest, length) in expected.items():
        array = arrays.get(name)
        data = array.data if isinstance(array, Array) else b""
        if len(data) != length or hashlib.sha256(data).hexdigest() != digest:
            raise PayloadError(f"file '{name}' was damaged on its way: its content has another digest")
        files[name] = data
    return task, files


def size_bytes(content: RecordDict) -> int:
    """The bytes of a message's content: its text and its blobs."""
    size = 0
    for record in content.values():
        if isinstance(record, ArrayRecord):
            size += sum(len(array.data) for array in record.values())
        else:
            size += sum(len(v) if isinstance(v, bytes) else len(str(v).encode()) for v in record.values())
    return size
