"""What a device does when an edge or the device itself fails: which failures there are, and who is next."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from typing import TypeVar

from fedkd.serving.protocol import Answer, EdgeError, EdgeLost, EdgeUnreachable, Pause, Steps

Result = TypeVar("Result")
Notice = Callable[[str], None]
BUSY = (429, 503)
DEAD = (408, 500, 502, 504)
STRANGER = (401, 403)
ELSEWHERE = ("model_not_found", "not_ready", "closing", "cancelled", "session_busy")
FINAL = ("deadline_exceeded",)


class EdgeBusy(EdgeLost):
    """The edge has no room now; it may in `retry_after_s` seconds."""

    def __init__(self, message: str, retry_after_s: float) -> None:
        super().__init__(message)
        self.retry_after_s = retry_after_s


class SessionLost(EdgeLost):
    """The edge answers but no longer has the session: it was started anew, or took too long to hear of us."""


class DeviceCannot(EdgeError):
    """This device cannot hold or run its part of the model."""


def check(edge: str, answer: Answer) -> Answer:
    """`answer`, if it is a good one.

    EdgeBusy, SessionLost or EdgeLost where waiting, going on from the hand-off or another edge would help;
    EdgeError where it would not, as with a request that no edge can fulfil.
    """
    status = answer.status
    if 200 <= status < 300:
        return answer
    code, ours = "", True
    try:
        error = json.loads(answer.content)["error"]
        reason, code = str(error["message"]), str(error.get("code"))
    except (ValueError, KeyError, TypeError, AttributeError):
        reason, ours = f"HTTP {status}; is this a fedkd edge?", False
    message = f"the edge at {edge} refuses: {reason}"
    if code in FINAL:
        raise EdgeError(message)
    if status in BUSY and code not in ELSEWHERE:
        raise EdgeBusy(message, _seconds(answer.headers.get("retry-after", "")))
    if code in ("session_not_found", "model_changed"):
        raise SessionLost(message)
    if status in STRANGER:
        raise EdgeLost(f"{message}; give its --token")
    if status in DEAD or code in ELSEWHERE or not ours:
        raise EdgeLost(message)
    raise EdgeError(message)


def _seconds(text: str) -> float:
    try:
        return min(max(float(text), 0.05), 60.0)
    except ValueError:
        return 1.0


def patiently(attempt: Callable[[], Steps[Result]], patience_s: float) -> Steps[Result]:
    """`attempt`, again while the edge is busy, for `patience_s` seconds of waiting in all."""
    waited_s = 0.0
    while True:
        try:
            return (yield from attempt())
        except EdgeBusy as busy:
            waited_s += busy.retry_after_s
            if waited_s > patience_s:
                raise
            yield Pause(busy.retry_after_s)


def one_after_another(
    edges: Sequence[str],
    attempt: Callable[[str], Steps[Result]],
    *,
    patience_s: float,
    persist: bool,
    notice: Notice,
) -> Steps[Result]:
    """`attempt` at one edge after another until it works.

    When all have failed the list is gone through again as long as some are only busy (or, with `persist`,
    whatever they fail of), for `patience_s` seconds of waiting. EdgeError then, with every edge's reason.
    """
    waited_s = 0.0
    while True:
        lost: list[EdgeLost] = []
        for place, edge in enumerate(edges):
            try:
                return (yield from attempt(edge))
            except EdgeLost as error:
                lost.append(error)
                if place + 1 < len(edges):
                    notice(f"{error}; going on at {edges[place + 1]}")
        pauses = [error.retry_after_s for error in lost if isinstance(error, EdgeBusy)] or [1.0] * persist
        if not pauses or waited_s + min(pauses) > patience_s:
            break
        notice(f"no edge takes the picture now; trying again in {min(pauses):g} s")
        waited_s += min(pauses)
        yield Pause(min(pauses))
    hint = ""
    if all(isinstance(error, EdgeUnreachable) for error in lost):
        hint = "; start one with `fedkd serve` or correct the URL"
    if len(set(edges)) == 1:
        raise type(lost[-1])(f"{lost[-1]}{hint}") if hint else lost[-1]
    told = "; ".join(map(str, lost))
    raise EdgeError(f"none of the {len(set(edges))} edges can go on: {told}{hint}") from lost[-1]


def others_first(edges: Sequence[str], lost: str, error: EdgeLost) -> list[str]:
    """The order in which to go on after `lost` failed: it comes last, unless only its session is gone."""
    place = edges.index(lost)
    others = [*edges[place + 1 :], *edges[:place]]
    return [lost, *others] if isinstance(error, SessionLost) else [*others, lost]
