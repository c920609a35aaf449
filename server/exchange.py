"""One exchange with many nodes: ask each, take answers as they come, name those that fail.

What the server holds does not grow with the number of nodes: requests are built when their turn comes, at most
`WINDOW` of them wait for an answer at a time, and an answer is checked, stored and let go before the next is taken.
"""

from __future__ import annotations

import math
import time
from collections import deque
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from itertools import islice
from typing import Any

from flwr.app import Message, RecordDict
from flwr.serverapp import Grid

from clients.payload import size_bytes, unpack
from fedkd.recipe.sections import FederationConfig

POLL_S = 0.3
WINDOW = 64  # nodes that may be at work on a request at a time
PUSHED, PUSHED_BYTES = 16, 32 * 2**20  # messages sent in one go
PULLED, PULLED_BYTES = 16, 64 * 2**20  # answers fetched in one go
FIRST_PULLED = 4  # as long as nobody knows how large they are
WAYS = ("up", "down", "registry", "edge")  # that bytes go: messages to and from the server, a registry, HTTP to edges
NAMED = 20  # nodes that an error names

Build = Callable[[], RecordDict]
Check = Callable[[str, dict[str, Any], dict[str, bytes]], Any]
Store = Callable[[str, Any, dict[str, bytes], "Exchange"], None]


class QuorumError(ValueError):
    """Too few nodes answered well for the round to go on."""


@dataclass
class Exchange:
    """What came of an exchange, by node name: checked answers, who was left out and why, who answered twice, bytes.

    Those `refused` did answer, but with something that could not be used. `up` is towards the server; `registry` is
    what a node pulled from a registry for this phase, `edge` what it sent straight to its edge.
    """

    answers: dict[str, Any] = field(default_factory=dict)
    left_out: dict[str, str] = field(default_factory=dict)
    refused: set[str] = field(default_factory=set)
    duplicates: list[str] = field(default_factory=list)
    asked: int = 0
    up: dict[str, int] = field(default_factory=dict)
    down: dict[str, int] = field(default_factory=dict)
    registry: dict[str, int] = field(default_factory=dict)
    edge: dict[str, int] = field(default_factory=dict)
    seconds: float = 0.0

    def entry(self, name: str) -> dict[str, Any]:
        """The exchange as a phase of the report, with its bytes in all and by node (`ledger`)."""
        ways = {"up": self.up, "down": self.down, "registry": self.registry, "edge": self.edge}
        return {
            "name": name,
            "seconds": self.seconds,
            "bytes": {way: sum(ways[way].values()) for way in ("up", "down")},
            "asked": self.asked,
            "answered": len(self.answers),
            "left_out": [{"node": node, "reason": self.left_out[node]} for node in sorted(self.left_out)],
            "duplicates": sorted(self.duplicates),
            "ledger": [
                {"node": node, **{way: of_node.get(node, 0) for way, of_node in ways.items()}}
                for node in sorted(set().union(*ways.values()))
            ],
        }


def with_earlier(entry: dict[str, Any], earlier: dict[str, Any] | None) -> dict[str, Any]:
    """A phase's entry, with what the same phase did before the server was stopped and went through it again."""
    if earlier is None:
        return entry
    ledger: dict[str, dict[str, Any]] = {}
    for line in [*earlier["ledger"], *entry["ledger"]]:
        before = ledger.setdefault(line["node"], {"node": line["node"], **dict.fromkeys(WAYS, 0)})
        for way in WAYS:
            before[way] += line.get(way, 0)  # an older fedkd knew fewer ways
    return {
        **entry,
        "seconds": earlier["seconds"] + entry["seconds"],
        "bytes": {way: earlier["bytes"][way] + entry["bytes"][way] for way in ("up", "down")},
        "ledger": [ledger[node] for node in sorted(ledger)],
    }


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
    requests: Mapping[str, tuple[int, Build]],
    kind: str,
    *,
    group: str,
    timeout_s: float,
    max_bytes: int,
    check: Check,
    store: Store | None = None,
    progress: Callable[[int, int], None] | None = None,
) -> Exchange:
    """Ask the nodes of `requests` (name → node id, and what builds its content) with messages of type `kind`.

    `check(name, task, files)` returns what to keep of an answer, or raises to leave the node out; `store` then
    makes it durable. Answers come back sorted by name, whatever the order of arrival. A node that raises, is
    silent until `timeout_s` seconds are over or answers with something malformed is left out with the reason; so is
    one whose request has more than `max_bytes`. A second answer of a node is ignored and named.
    """
    talk = _Talk(grid, requests, kind, group, timeout_s, max_bytes, check, store)
    while True:
        talk.push()
        moved = talk.pull()
        if progress is not None:
            progress(talk.done, len(requests))
        if talk.over():
            return talk.result
        if not moved:
            time.sleep(POLL_S)


class _Talk:
    """An exchange under way: whose turn is to come, who was asked and when, what came of it so far."""

    def __init__(
        self,
        grid: Grid,
        requests: Mapping[str, tuple[int, Build]],
        kind: str,
        group: str,
        timeout_s: float,
        max_bytes: int,
        check: Check,
        store: Store | None,
    ) -> None:
        self.grid, self.requests, self.kind, self.group = grid, requests, kind, group
        self.timeout_s, self.max_bytes, self.check, self.store = timeout_s, max_bytes, check, store
        self.result, self.started = Exchange(asked=len(requests)), time.monotonic()
        self.turn = deque(sorted(requests))
        self.waiting: dict[str, tuple[str, float]] = {}  # message id → name, and when it was asked
        self.answered: dict[str, str] = {}  # message id → name
        self.largest = 0  # bytes of an answer so far
        # Silent nodes must not keep others from being asked: each makes room after its share of half the time.
        self.patience_s = timeout_s * min(1.0, WINDOW / (2 * max(1, len(requests))))

    @property
    def done(self) -> int:
        """Nodes of which nothing more is awaited."""
        return len(self.requests) - len(self.turn) - len(self.waiting)

    def push(self) -> None:
        """Ask the next nodes, as many as there is room for."""
        while self.turn:
            now = time.monotonic()
            room = WINDOW - sum(now - asked < self.patience_s for _, asked in self.waiting.values())
            messages: list[tuple[str, Message]] = []
            size = 0
            while self.turn and len(messages) < min(room, PUSHED) and size < PUSHED_BYTES:
                name = self.turn.popleft()
                message = self.request(name)
                if message is not None:
                    messages.append((name, message))
                    size += self.result.down[name]
            if not messages:
                if room <= 0:
                    return
                continue
            pushed = set(self.grid.push_messages([message for _, message in messages]))
            for name, message in messages:
                if message.metadata.message_id in pushed:
                    self.waiting[message.metadata.message_id] = (name, now)
                else:
                    self.result.left_out[name] = "it is not connected"

    def request(self, name: str) -> Message | None:
        """The message for a node; None, and the node is left out, when it is too large to be sent."""
        node, build = self.requests[name]
        content = build()
        size = size_bytes(content)
        if size > self.max_bytes:
            self.result.left_out[name] = (
                f"its instruction has {size} bytes, more than federation.max_message_mb allows; raise it, or let "
                "nodes pull checkpoints from federation.registry_url"
            )
            return None
        self.result.down[name] = size
        return Message(content, node, self.kind, group_id=self.group, ttl=self.timeout_s + 60.0)

    def pull(self) -> bool:
        """Take the answers that are there; whether there were any."""
        before, ids = len(self.waiting), iter(list(self.waiting))
        while batch := list(islice(ids, self.batch())):
            for reply in self.grid.pull_messages(batch):
                self.take(reply)
        return len(self.waiting) < before

    def batch(self) -> int:
        """How many answers may be fetched in one go."""
        return max(1, min(PULLED, PULLED_BYTES // self.largest)) if self.largest else FIRST_PULLED

    def take(self, reply: Message) -> None:
        """Check and store one answer."""
        key = reply.metadata.reply_to_message_id
        if key in self.answered:
            self.result.duplicates.append(self.answered[key])
            return
        if key not in self.waiting:
            return
        name, _ = self.waiting.pop(key)
        self.answered[key] = name
        if reply.has_error():
            self.result.left_out[name] = _reason(reply)
            return
        try:
            size = size_bytes(reply.content)
            self.largest = max(self.largest, size)
            self.result.up[name] = size
            task, files = unpack(reply.content, max_bytes=self.max_bytes)
            answer = self.check(name, task, files)
        except Exception as error:  # whatever a node sends, it costs only its own share
            self.result.left_out[name] = f"its answer is not usable: {first_line(error)}"
            self.result.refused.add(name)
            return
        self.result.answers[name] = answer
        if self.store is not None:
            self.store(name, answer, files, self.result)

    def over(self) -> bool:
        """Whether all is said, or the time is over; then the silent ones are named and the answers sorted."""
        if (self.turn or self.waiting) and time.monotonic() - self.started <= self.timeout_s:
            return False
        result, silence = self.result, f"no answer within {self.timeout_s:g} s"
        for name, _ in self.waiting.values():
            result.left_out[name] = silence
        for name in self.turn:
            result.left_out[name] = f"{silence}: it was not asked, since too many others were slow"
        result.answers = {name: result.answers[name] for name in sorted(result.answers)}
        result.duplicates = sorted(set(result.duplicates))
        result.seconds = time.monotonic() - self.started
        return True


def quorum_of(config: FederationConfig, phase: str) -> tuple[float, str]:
    """The share of nodes that have to answer well in a phase, and the recipe's field that says so."""
    if phase in config.quorums:
        return config.quorums[phase], f"federation.quorums.{phase}"
    return config.quorum, "federation.quorum"


def need_quorum(phase: str, config: FederationConfig, asked: int, result: Exchange) -> None:
    """Raise QuorumError that names the missing nodes when too few of those asked answered well."""
    share, field_name = quorum_of(config, phase)
    needed = max(1, math.ceil(round(share * asked, 6)))
    if len(result.answers) < needed:
        named = [f"{node}: {why}" for node, why in sorted(result.left_out.items())] or ["nobody was asked"]
        more = [f"and {len(named) - NAMED} more"] if len(named) > NAMED else []
        reasons = "; ".join(named[:NAMED] + more)
        raise QuorumError(
            f"{phase}: {len(result.answers)} of {asked} nodes answered well, {field_name}={share:g} "
            f"needs {needed} ({reasons}); mend the nodes and resume the run"
        )
