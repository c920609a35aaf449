"""What is known of a run under way from its events: round, phase, each node's state, bytes, losses."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field
from typing import Any

ASKED, ANSWERED, LEFT_OUT = "asked", "answered", "left out"
ORDER = (LEFT_OUT, ASKED, ANSWERED)
Event = dict[str, Any]


@dataclass
class NodeState:
    """A node in the phase under way, and the bytes that it sent and got in the whole run."""

    state: str = ""
    phase: str = ""
    up: int = 0
    down: int = 0
    why: str = ""


@dataclass
class Board:
    """Follows the events of a run; unknown events change nothing."""

    round: int = 0
    rounds: int = 0
    phase: str = ""
    done: int = 0
    total: int = 0
    loss: float | None = None
    up: int = 0
    down: int = 0
    failed: str = ""
    nodes: dict[str, NodeState] = field(default_factory=dict)

    def take(self, event: Event) -> None:
        """Change with one event; KeyError or ValueError when it is malformed."""
        kind = event["event"]
        self.failed = str(event.get("error", "it failed")) if kind == "failed" else ""
        if kind == "round_start":
            self.round, self.rounds = int(event["round"]), int(event["rounds"])
        elif kind == "phase_start":
            self.begin(event)
        elif kind == "progress":
            if event["phase"] != self.phase:
                self.phase, self.loss = str(event["phase"]), None
            self.done, self.total = int(event["done"]), int(event["total"])
            self.loss = event.get("loss", self.loss)
        elif kind == "answered":
            self.node(event["node"]).state = ANSWERED
        elif kind == "phase_end":
            self.end(event)

    def node(self, name: str) -> NodeState:
        """The node of this name, known from now on."""
        return self.nodes.setdefault(str(name), NodeState())

    def begin(self, event: Event) -> None:
        """A phase begins: its nodes are asked, the others rest."""
        self.phase, self.done, self.total, self.loss = str(event["phase"]), 0, 0, None
        for node in self.nodes.values():
            node.state = LEFT_OUT if node.state == LEFT_OUT else ""
        for name in event.get("nodes") or []:
            node = self.node(name)
            node.state, node.phase, node.why = ASKED, self.phase, ""

    def end(self, event: Event) -> None:
        """A phase is over: who answered, who was left out, what moved."""
        for line in event.get("ledger") or []:
            node = self.node(line["node"])
            node.up, node.down = node.up + line["up"], node.down + line["down"]
        sent = event.get("bytes") or {}
        self.up, self.down = self.up + sent.get("up", 0), self.down + sent.get("down", 0)
        for left in event.get("left_out") or []:
            node = self.node(left["node"])
            node.state, node.phase, node.why = LEFT_OUT, str(event["phase"]), str(left["reason"])
        for node in self.nodes.values():
            if node.state == ASKED:
                node.state = ANSWERED

    def shown(self, rows: int) -> tuple[list[tuple[str, NodeState]], str]:
        """At most `rows` nodes, those left out and those at work first, and words on the others ('': none)."""
        known = [(name, node) for name, node in self.nodes.items() if node.state]
        known.sort(key=lambda each: (ORDER.index(each[1].state), each[0]))
        first, rest = known[:rows], known[rows:]
        counts = Counter(node.state for _, node in rest)
        words = ", ".join(f"{counts[state]} {state}" for state in ORDER if counts[state])
        return first, f"and {len(rest)} more: {words}" if rest else ""
