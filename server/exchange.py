"""One exchange with many nodes: send each its message, collect the answers, name those that fail."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

from flwr.app import Message, RecordDict
from flwr.serverapp import Grid

from clients.payload import size_bytes, unpack

POLL_S = 0.3


class QuorumError(ValueError):
    """Too few nodes answered well for the round to go on."""


@dataclass
class Exchange:
    """What came of an exchange: checked answers by node name, who was left out and why, bytes and seconds."""

    answers: dict[str, Any] = field(default_factory=dict)
    left_out: dict[str, str] = field(default_factory=dict)
    asked: int = 0
    bytes_up: int = 0
    bytes_down: int = 0
    seconds: float = 0.0

    def entry(self, name: str) -> dict[str, Any]:
        """The exchange as a phase of the report; up is towards the server."""
        return {
            "name": name,
            "seconds": self.seconds,
            "bytes": {"up": self.bytes_up, "down": self.bytes_down},
            "asked": self.asked,
            "answered": len(self.answers),
            "left_out": [{"node": node, "reason": self.left_out[node]} for node in sorted(self.left_out)],
        }


Check = Callable[[str, dict[str, Any], dict[str, bytes]], Any]


def first_line(error: object) -> str:
    """One readable line of an error."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return lines[0][:300] if lines else type(error).__name__


def _reason(message: Message) -> str:
    code, text = message.error.code, str(message.error.reason or "")
    known = {3: "its time to live ran out", 5: "the node went away", 8: "its process was killed"}
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    return (f"{known.get(code, 'it raised')}: " + (lines[-1] if lines else "no reason given"))[:300]


def exchange(
    grid: Grid,
    requests: Mapping[str, tuple[int, RecordDict]],
    kind: str,
    *,
    group: str,
    timeout_s: float,
    max_bytes: int,
    check: Check,
    progress: Callable[[int, int], None] | None = None,
) -> Exchange:
    """Send `requests` (name → node id and content) as messages of type `kind`, wait, check every answer.

    `check(name, task, files)` returns what to keep, or raises to leave the node out. Answers come back sorted
    by name, whatever the order of arrival. A node that raises, is silent for `timeout_s` seconds or answers
    with something malformed is left out with the reason.
    """
    result, started = Exchange(asked=len(requests)), time.monotonic()
    messages = {}
    for name, (node, content) in sorted(requests.items()):
        messages[name] = Message(content, node, kind, group_id=group, ttl=timeout_s + 60.0)
        result.bytes_down += size_bytes(content)
    pushed = set(grid.push_messages(list(messages.values())))
    ids = {message.metadata.message_id: name for name, message in messages.items()}
    ids = {message_id: name for message_id, name in ids.items() if message_id in pushed}
    replies: dict[str, Message] = {}
    while len(replies) < len(ids):
        waiting = [i for i in ids if ids[i] not in replies]
        for reply in grid.pull_messages(waiting):
            answered = ids.get(reply.metadata.reply_to_message_id)
            if answered is not None:
                replies[answered] = reply
        if progress is not None:
            progress(len(replies), len(ids))
        if len(replies) == len(ids) or time.monotonic() - started > timeout_s:
            break
        time.sleep(POLL_S)
    silence = f"no answer within {timeout_s:g} s"
    for name in messages:
        if name not in replies:
            result.left_out[name] = silence if name in ids.values() else "it is not connected"
        elif replies[name].has_error():
            result.left_out[name] = _reason(replies[name])
        else:
            content = replies[name].content
            try:
                result.bytes_up += size_bytes(content)
                result.answers[name] = check(name, *unpack(content, max_bytes=max_bytes))
            except Exception as error:  # whatever a node sends, it costs only its own share
                result.left_out[name] = f"its answer is not usable: {first_line(error)}"
    result.seconds = time.monotonic() - started
    return result


def need_quorum(phase: str, share: float, asked: int, result: Exchange) -> None:
    """Raise QuorumError that names the missing nodes when fewer than `share` of those asked answered well."""
    needed = max(1, math.ceil(share * asked))
    if len(result.answers) < needed:
        reasons = "; ".join(f"{node}: {why}" for node, why in sorted(result.left_out.items())) or "nobody was asked"
        raise QuorumError(
            f"{phase}: {len(result.answers)} of {asked} nodes answered well, federation.quorum={share:g} "
            f"needs {needed} ({reasons}); mend the nodes and resume the run"
        )
