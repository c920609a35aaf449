"""The way of a synthetic set straight from a user to its edge: delivered over HTTP, and found there by its digest.

With `federation.sets_route=edge` only a receipt goes through the cloud. Where a set goes to and where it is found is
said by the nodes' own configurations, never by the server.
"""

from __future__ import annotations

import hashlib
import os
import random
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import httpx

from clients.node import Node, NodeError
from fedkd.data.packing import unpack_rows
from fedkd.recipe import Recipe
from fedkd.serving.spool import Spool

ROUTES = ("federation", "edge")
TRIES, PAUSE_S = 4, 0.5
TIMEOUT_S = httpx.Timeout(60.0, connect=10.0)
AGAIN = (408, 429, 500, 502, 503, 504)
Row = dict[str, object]


@dataclass(frozen=True)
class Way:
    """Where a user's sets go: its edge's service, the token for it, and whose certificate it trusts there."""

    url: str
    token: str
    ca: str = ""


def by_edge(node: Node, recipe: Recipe) -> bool:
    """Whether sets go straight to the edge; NodeError when the recipe wants what the node's configuration forbids."""
    wanted, allowed = recipe.federation.sets_route, str(node.config.get("sets-route", ""))
    if allowed and allowed not in ROUTES:
        raise NodeError(f"node-config sets-route='{allowed}' is not allowed; give one of {', '.join(ROUTES)}")
    if allowed and allowed != wanted:
        raise NodeError(
            f"the recipe has federation.sets_route={wanted}, this node's sets-route is {allowed}; make them one"
        )
    return wanted == "edge"


def way_of(node: Node) -> Way:
    """A user's way to its edge, from `edge-url`, `edge-token-file` (or `edge-token`) and `edge-ca`."""
    config = node.config
    url = str(config.get("edge-url", "")).rstrip("/")
    if urlsplit(url).scheme not in ("http", "https") or not urlsplit(url).hostname:
        raise NodeError(
            f"federation.sets_route=edge needs node-config edge-url, which is '{url}'; give the http(s) URL of this "
            "user's edge (`fedkd sets serve` there), or set federation.sets_route=federation"
        )
    ca = str(config.get("edge-ca", ""))
    if ca and not Path(ca).expanduser().is_file():
        raise NodeError(f"node-config edge-ca names '{ca}', which does not exist; give the authority's certificate")
    path = str(config.get("edge-token-file", ""))
    try:
        token = Path(path).expanduser().read_text(encoding="utf-8") if path else str(config.get("edge-token", ""))
    except OSError as error:
        raise NodeError(f"node-config edge-token-file='{path}' cannot be read: {error.strerror}") from error
    if not (token := token.strip()):
        raise NodeError("federation.sets_route=edge needs node-config edge-token-file with this user's token")
    return Way(url, token, ca)


def deliver(data: bytes, user: str, way: Way) -> dict[str, Any]:
    """Put a set at the user's edge: {"digest", "bytes", "sent"}, `sent` being the bytes that had to go.

    The same set again costs nothing. NodeError when the edge's service does not take it, or not within TRIES tries.
    """
    digest = hashlib.sha256(data).hexdigest()
    url = f"{way.url}/v1/sets/{user}/{digest}"
    host = urlsplit(url).hostname or ""
    local = host in ("localhost", "::1") or host.startswith("127.")  # no proxy is asked for those
    headers, why = {"Authorization": f"Bearer {way.token}"}, ""
    verify: Any = _trusting(way.ca) if way.ca else True
    with httpx.Client(headers=headers, timeout=TIMEOUT_S, verify=verify, trust_env=not local) as client:
        for attempt in range(TRIES):
            if attempt:
                time.sleep(PAUSE_S * 2 ** (attempt - 1))
            try:
                if client.get(url).status_code == 200:
                    return {"digest": digest, "bytes": len(data), "sent": 0}
                answer = client.put(url, content=data)
            except httpx.HTTPError as error:
                why = f"{type(error).__name__}: {error}"
                continue
            if answer.is_success:
                return {"digest": digest, "bytes": len(data), "sent": len(data)}
            why = f"{answer.status_code}: {_told(answer)}"
            if answer.status_code not in AGAIN:
                break
    raise NodeError(f"the edge's service at {way.url} does not take the set ({why[:200]})")


def _trusting(ca: str) -> Any:
    import ssl

    return ssl.create_default_context(cafile=str(Path(ca).expanduser()))


def _told(answer: httpx.Response) -> str:
    try:
        return str(answer.json()["error"]["message"])
    except (ValueError, KeyError, TypeError):
        return answer.reason_phrase


def spool_of(node: Node) -> Spool:
    """Where an edge finds what its service took; NodeError when its configuration names no such folder."""
    folder = str(node.config.get("spool", ""))
    if not folder:
        raise NodeError(
            "federation.sets_route=edge needs node-config spool with the folder of this edge's `fedkd sets serve`; "
            "or set federation.sets_route=federation"
        )
    return Spool(Path(folder).expanduser())


def collected(spool: Spool, receipts: Sequence[Mapping[str, Any]], recipe: Recipe) -> tuple[list[Row], dict[str, str]]:
    """The pictures of the sets that the receipts speak of, and {user: why} for sets that are not there or not right.

    A set has to have the receipt's digest, size and count, and the schema and picture size of the recipe.
    """
    rows: list[Row] = []
    missing: dict[str, str] = {}
    for receipt in receipts:
        user = str(receipt["user"])
        try:
            rows += _checked(spool, receipt, recipe)
        except FileNotFoundError:
            missing[user] = "its set has not come to the edge"
        except (ValueError, OSError) as error:
            missing[user] = f"its set at the edge is not usable: {error}"[:300]
    return rows, missing


def _checked(spool: Spool, receipt: Mapping[str, Any], recipe: Recipe) -> list[Row]:
    path, limit = spool.path(str(receipt["user"]), str(receipt["digest"])), _limit(recipe)
    size, count = int(receipt["bytes"]), int(receipt["count"])
    if os.stat(path).st_size != size or size > limit:
        raise ValueError(f"it has {os.stat(path).st_size} bytes, its receipt says {size} (limit {limit})")
    data = path.read_bytes()
    if hashlib.sha256(data).hexdigest() != receipt["digest"]:
        raise ValueError("its content has another sha256 than its receipt says")
    found = list(unpack_rows(data, limit, max_pictures=recipe.trust.max_pictures, side=recipe.model.resolution))
    if len(found) != count:
        raise ValueError(f"it has {len(found)} pictures, its receipt says {count}")
    return found


def _limit(recipe: Recipe) -> int:
    return int(recipe.federation.max_message_mb * 2**20)


def captions_of(rows: Sequence[Row], most: int, seed: int) -> list[str]:
    """At most `most` captions of an edge's pictures, drawn by the seed and sorted: whose they are is not told."""
    captions = [str(row["caption"]) for row in rows]
    return sorted(captions if len(captions) <= most else random.Random(seed).sample(captions, most))
