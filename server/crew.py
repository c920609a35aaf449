"""The nodes of a run: waited for, described, asked; and what came of it made durable."""

from __future__ import annotations

import math
import time
from typing import Any

from flwr.serverapp import Grid

from fedkd.checkpoints.audit_log import AuditLog
from fedkd.recipe import Recipe
from server.delivery import record
from server.exchange import Build, Check, Exchange, QuorumError, Store, exchange, need_quorum, quorum_of, with_earlier
from server.instructions import Instructions
from server.members import Member, by_name, described, key_of
from server.state import RunState

Requests = dict[str, tuple[int, Build]]


class Crew:
    """Members by name, as they described themselves in this round. With no `registry_url` blobs go in messages."""

    def __init__(
        self, grid: Grid, recipe: Recipe, state: RunState, audit: AuditLog, *, registry_url: str, wait_s: float
    ) -> None:
        self.grid, self.recipe, self.state, self.audit = grid, recipe, state, audit
        self.registry_url, self.wait_s = registry_url, wait_s
        self.members: dict[str, Member] = {}

    def of_role(self, role: str) -> list[Member]:
        """Members of a role by index, then name: never by order of arrival."""
        found = (member for member in self.members.values() if member.role == role)
        return sorted(found, key=lambda member: (member.index, member.name))

    @property
    def expected(self) -> int:
        """How many nodes the recipe speaks of."""
        return self.recipe.federation.edges + self.recipe.federation.users

    def wait(self) -> list[int]:
        """Wait at most `wait_s` seconds for the recipe's nodes, later for a quorum of them; then whoever is there."""
        wanted = self.expected
        if self.members:  # a node that is gone for good must not hold up every round
            wanted = math.ceil(quorum_of(self.recipe.federation, "describe")[0] * self.expected)
        deadline = time.monotonic() + self.wait_s
        while len(ids := sorted(self.grid.get_node_ids())) < wanted and time.monotonic() < deadline:
            self.state.event("waiting", nodes=len(ids), expected=wanted)
            time.sleep(1.0)
        if not ids:
            raise QuorumError(f"no node connected within {self.wait_s:g} s; start edges and users, then resume the run")
        return ids

    def describe(self, number: int, instructions: Instructions) -> None:
        """Ask every node what it is; members are known by name from here on."""
        ids = self.wait()
        content = instructions.build(number, "describe", None, None, {})
        requests: Requests = {key_of(node): (node, lambda: content) for node in ids}
        registered = {key_of(node.node_id): node.name for node in self.grid.get_nodes()}  # empty where no keys are

        def check(key: str, task: dict[str, Any], files: dict[str, bytes]) -> Member:
            return described(key, task, registered.get(key) or "")

        result = self.ask(number, "describe", "query.describe", requests, check)
        self.members, result = by_name(result, self.members.values(), registered)
        need_quorum("describe", self.recipe.federation, max(self.expected, len(ids)), result)
        self.keep(number, "describe", result, nodes=[member.facts() for member in self.members.values()])

    def ask(
        self, number: int, phase: str, kind: str, requests: Requests, check: Check, store: Store | None = None
    ) -> Exchange:
        """One exchange with the recipe's time and size limits."""
        named = [name for name in requests if name in self.members]
        self.state.event("phase_start", round=number, phase=phase, nodes=named)
        config = self.recipe.federation

        def seen(name: str, task: dict[str, Any], files: dict[str, bytes]) -> Any:
            answer = check(name, task, files)
            if name in self.members:
                self.state.event("answered", round=number, phase=phase, node=name)
            return answer

        return exchange(
            self.grid,
            requests,
            kind,
            group=str(number),
            timeout_s=config.deadlines_s.get(phase, config.phase_timeout_s),
            max_bytes=int(config.max_message_mb * 2**20),
            check=seen,
            store=store,
            progress=self.state.progress(number, phase),
        )

    def account(self, number: int, phase: str, result: Exchange, costs: dict[str, dict[str, int]]) -> None:
        """Record what nodes took of checkpoints in a phase."""
        record(self.state, number, phase, self.registry_url, costs)
        if self.registry_url:
            result.registry = {name: cost["fetched"] for name, cost in costs.items() if cost["fetched"]}

    def keep(self, number: int, phase: str, result: Exchange, *, quorum: bool = False, **facts: Any) -> None:
        """Make an exchange durable: as the phase when the quorum holds, else as what stopped the run."""
        again = self.state.finished(number, phase)  # describe and refresh, gone through anew after a resume
        entry = with_earlier(result.entry(phase), again["entry"] if again else None)
        for name, why in sorted(result.left_out.items()):
            event = "refused" if name in result.refused else "left_out"
            self.audit.add(event, round=number, phase=phase, node=name, why=why)
        for name in result.duplicates:
            self.audit.add("duplicate", round=number, phase=phase, node=name)
        if quorum:
            try:
                need_quorum(phase, self.recipe.federation, result.asked, result)
            except QuorumError:
                self.state.finish(number, "stopped", {"entry": entry, **facts})
                raise
        self.state.finish(number, phase, {"entry": entry, **facts})
        self.state.event("phase_end", round=number, phase=phase, **{k: v for k, v in entry.items() if k != "name"})
