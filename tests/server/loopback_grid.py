"""A Flower Grid in this process: calls the real ClientApp with a Context per node, keeps every message."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Collection, Iterable
from typing import Any

from flwr.app import Context, Error, Message, RecordDict
from flwr.serverapp import Grid
from flwr.supercore.task_identity import TaskIdentity

Fault = Callable[[Message, Message | None], Message | None]


class LoopbackGrid(Grid):
    """`faults` maps (partition, phase) to what happens to that node's reply: raise, change or drop it.

    `here(partition, round)` says whether a node is connected when a round begins. A `twice` partition's replies come
    twice, those of a `late` (partition, phase) when the next messages are sent.
    """

    def __init__(
        self,
        nodes: int,
        faults: dict[tuple[int, str], Fault] | None = None,
        *,
        app: Callable[[Message, Context], Message] | None = None,
        here: Callable[[int, int], bool] = lambda partition, number: True,
        twice: Collection[int] = (),
        late: Collection[tuple[int, str]] = (),
    ) -> None:
        from clients.app import app as real

        TaskIdentity.task_id, TaskIdentity.run_id, TaskIdentity.node_id = 1, 1, 1
        self.app, self.faults = app or real, faults or {}
        self.here, self.twice, self.late, self.round = here, twice, late, 0
        self.held: dict[str, Message] = {}
        self.nodes = {1000 + 7 * (-i % nodes): i for i in range(nodes)}  # ids in another order than partitions
        self.replies: dict[str, Message] = {}
        self.sent: list[Message] = []
        self.received: list[Message] = []
        self.numbers = itertools.count(1)

    def set_run(self, run: Any) -> None:
        """Nothing to know of a run."""

    @property
    def run(self) -> Any:
        """No run."""
        return None

    def create_message(
        self,
        content: RecordDict,
        message_type: str,
        dst_node_id: int,
        group_id: str,
        ttl: float | None = None,
    ) -> Message:
        """A message as the application makes it."""
        return Message(content, dst_node_id, message_type, group_id=group_id, ttl=ttl)

    def get_node_ids(self) -> Iterable[int]:
        """The nodes that are connected."""
        return [node for node, partition in self.nodes.items() if self.here(partition, self.round + 1)]

    def push_messages(self, messages: Iterable[Message]) -> Iterable[str]:
        """Carry each message out at once; its reply waits to be pulled."""
        ids = []
        self.replies |= self.held
        self.held = {}
        for message in messages:
            self.round = max(self.round, int(message.metadata.group_id))
            message.metadata.__dict__["_message_id"] = str(next(self.numbers))
            self.sent.append(message)
            ids.append(message.metadata.message_id)
            reply = self.carry_out(message)
            if reply is not None:
                phase = message.metadata.message_type.rpartition(".")[2]
                late = (self.nodes[message.metadata.dst_node_id], phase) in self.late
                (self.held if late else self.replies)[message.metadata.message_id] = reply
                self.received.append(reply)
        return ids

    def carry_out(self, message: Message) -> Message | None:
        """The node's reply, or an error reply as Flower makes it when a client raises."""
        partition = self.nodes[message.metadata.dst_node_id]
        context = Context(
            run_id=1,
            node_id=message.metadata.dst_node_id,
            node_config={"partition-id": partition, "num-partitions": len(self.nodes)},
            state=RecordDict(),
            run_config={},
        )
        phase = message.metadata.message_type.rpartition(".")[2]
        fault = self.faults.get((partition, phase))
        try:
            reply = self.app(message, context) if fault is None or not getattr(fault, "early", False) else None
            return reply if fault is None else fault(message, reply)
        except Exception as error:
            return Message(Error(2, f"{type(error).__name__}: {error}"), reply_to=message)

    def pull_messages(self, message_ids: Iterable[str]) -> Iterable[Message]:
        """Replies that are there, in reverse: arrival order must not matter."""
        found = [self.replies.pop(i) for i in reversed(list(message_ids)) if i in self.replies]
        asked = {message.metadata.message_id: message for message in self.sent}
        again = (asked[reply.metadata.reply_to_message_id].metadata.dst_node_id for reply in found)
        return [*found, *(r for r, node in zip(found, again, strict=True) if self.nodes[node] in self.twice)]

    def send_and_receive(self, messages: Iterable[Message], *, timeout: float | None = None) -> Iterable[Message]:
        """Push, then pull."""
        return self.pull_messages(self.push_messages(messages))
