"""Sets that go straight from users to their edges: what of them the cloud is told, checks and keeps."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from fedkd.data.packing import MAX_CAPTION
from fedkd.recipe import Recipe
from server.state import RunState

HEX = frozenset("0123456789abcdef")
REASON = 300  # characters of why a set is not used
Receipt = dict[str, Any]


def check_receipt(task: Mapping[str, Any], files: Mapping[str, bytes], recipe: Recipe) -> Receipt:
    """A user's receipt {"digest", "count", "bytes", "sent"}; ValueError when it is malformed or its set came here.

    `sent` are the bytes that had to go to the edge: none when the set was there already.
    """
    if files:
        raise ValueError("it sent files to the cloud, and federation.sets_route=edge has sets go to edges alone")
    told = dict(task["receipt"])
    digest, numbers = told["digest"], {key: told[key] for key in ("count", "bytes", "sent")}
    if not isinstance(digest, str) or len(digest) != 64 or not set(digest) <= HEX:
        raise ValueError("its receipt has no sha256")
    if any(type(value) is not int for value in numbers.values()):
        raise ValueError("its receipt holds something that is not a whole number")
    if not 1 <= numbers["count"] <= recipe.trust.max_pictures:
        raise ValueError(f"its set has {numbers['count']} pictures; trust.max_pictures={recipe.trust.max_pictures}")
    if not 1 <= numbers["bytes"] <= recipe.federation.max_message_mb * 2**20:
        raise ValueError(f"its set has {numbers['bytes']} bytes, more than federation.max_message_mb allows")
    if numbers["sent"] not in (0, numbers["bytes"]):
        raise ValueError("its receipt says other bytes were sent than the set has")
    return {"digest": digest, **numbers}


def receipt_path(state: RunState, number: int, user: str) -> Path:
    """Where a round's receipt of a user is kept."""
    return state.round_folder(number) / "receipts" / f"{user}.json"


def receipts(state: RunState, number: int) -> dict[str, list[Receipt]]:
    """The receipts of a round by edge, in the order of the users' names, as edges are told them."""
    made = state.finished(number, "synthesise")
    assert made is not None
    found: dict[str, list[Receipt]] = {}
    for user in sorted(made["users"], key=lambda user: user["name"]):
        kept = json.loads(receipt_path(state, number, user["name"]).read_text(encoding="utf-8"))
        told = {key: kept[key] for key in ("digest", "count", "bytes")}
        found.setdefault(user["edge"], []).append({"user": user["name"], **told})
    return found


def check_missing(task: Mapping[str, Any], given: list[Receipt]) -> dict[str, str]:
    """{user: why} of the sets that an edge could not use; ValueError when it speaks of others than it was told."""
    missing = {str(user): " ".join(str(why).split())[:REASON] for user, why in dict(task["missing"]).items()}
    if not set(missing) <= {receipt["user"] for receipt in given}:
        raise ValueError("it misses sets of users that are not its own")
    return missing


def check_captions(task: Mapping[str, Any], recipe: Recipe) -> list[str]:
    """The captions that an edge wants drawn; ValueError when there are none, too many, or something else."""
    captions = list(task["captions"])
    if not 1 <= len(captions) <= recipe.distillation.pictures:
        raise ValueError(f"it names {len(captions)} captions; distillation.pictures={recipe.distillation.pictures}")
    if not all(isinstance(caption, str) and len(caption) <= MAX_CAPTION for caption in captions):
        raise ValueError(f"its captions are not all texts of at most {MAX_CAPTION} characters")
    return captions
