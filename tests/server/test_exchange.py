"""Asking many nodes: bounded in what is held, sorted by name, on time, and nobody's fault but one's own."""

from __future__ import annotations

from typing import Any

import pytest
from flwr.app import Context, Message

from clients.payload import pack, unpack
from fedkd.recipe.sections import FederationConfig
from server import exchange as exchanges
from server.exchange import WINDOW, Exchange, QuorumError, exchange, need_quorum, with_earlier
from tests.server.loopback_grid import LoopbackGrid

SIZE = 1000


def answer(message: Message, context: Context) -> Message:
    task, _ = unpack(message.content, max_bytes=2**30)
    return Message(pack({"name": task["name"]}, {"data": bytes(SIZE)}), reply_to=message)


class Watched(LoopbackGrid):
    """Counts the messages that lie with it, in and out, at the most."""

    lying = 0

    def pull_messages(self, message_ids: Any) -> Any:
        self.lying = max(self.lying, len(self.replies))
        self.pulled = max(getattr(self, "pulled", 0), len(found := super().pull_messages(message_ids)))
        return found


def ask(grid: LoopbackGrid, **more: Any) -> Exchange:
    names = {f"node-{partition:04d}": node for node, partition in grid.nodes.items()}
    requests = {name: (node, lambda name=name: pack({"name": name})) for name, node in names.items()}
    settings = {"group": "1", "timeout_s": 5.0, "max_bytes": 2**20, "check": lambda name, task, files: task["name"]}
    return exchange(grid, requests, "query.describe", **{**settings, **more})


def test_a_thousand_answers_are_stored_one_by_one_and_come_back_by_name() -> None:
    grid, stored = Watched(1000, app=answer), []
    keep = lambda name, value, files, so_far: stored.append((name, len(files["data"])))  # noqa: E731
    result = ask(grid, store=keep, timeout_s=120.0)
    assert list(result.answers) == sorted(result.answers) and len(result.answers) == 1000
    assert all(name == value for name, value in result.answers.items())
    assert sorted(stored) == [(name, SIZE) for name in result.answers] and stored != sorted(stored)
    assert grid.lying <= WINDOW and grid.pulled <= exchanges.PULLED
    entry = result.entry("describe")
    assert (entry["asked"], entry["answered"], entry["left_out"], entry["duplicates"]) == (1000, 1000, [], [])
    assert len(entry["ledger"]) == 1000 and entry["ledger"][0]["node"] == "node-0000"
    assert entry["bytes"]["up"] == sum(line["up"] for line in entry["ledger"]) > 1000 * SIZE


def test_large_answers_are_fetched_a_few_at_a_time(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(exchanges, "PULLED_BYTES", 3 * SIZE)
    grid = Watched(40, app=answer)
    assert len(ask(grid).answers) == 40
    assert grid.pulled == exchanges.FIRST_PULLED  # and two from then on
    monkeypatch.setattr(exchanges, "FIRST_PULLED", 1)
    grid = Watched(40, app=answer)
    assert len(ask(grid).answers) == 40 and grid.pulled == 2


def test_silent_nodes_do_not_keep_others_from_being_asked() -> None:
    count = 4 * WINDOW
    faults = {(partition, "describe"): lambda message, reply: None for partition in range(3 * WINDOW)}
    result = ask(LoopbackGrid(count, faults, app=answer), timeout_s=2.0)
    assert len(result.answers) == WINDOW
    assert set(result.left_out.values()) == {"no answer within 2 s"} and len(result.left_out) == 3 * WINDOW


def test_a_second_answer_is_ignored_and_named() -> None:
    result = ask(LoopbackGrid(5, app=answer, twice=[1, 3]))
    assert result.duplicates == ["node-0001", "node-0003"] and len(result.answers) == 5


def test_an_instruction_over_the_limit_is_not_sent_and_named() -> None:
    grid = LoopbackGrid(2, app=answer)
    result = ask(grid, max_bytes=20)
    assert not grid.sent and "more than federation.max_message_mb allows" in result.left_out["node-0000"]


def test_what_the_server_itself_cannot_store_is_not_the_nodes_fault() -> None:
    def store(*_: Any) -> None:
        raise OSError("No space left on device")

    with pytest.raises(OSError, match="No space left"):
        ask(LoopbackGrid(2, app=answer), store=store)


def test_each_phase_has_its_own_quorum_and_names_at_most_twenty() -> None:
    config = FederationConfig(quorum=0.5, quorums={"finetune": 0.9})
    result = Exchange(answers={f"n{i}": 1 for i in range(60)}, left_out={f"x{i:02d}": "gone" for i in range(40)})
    need_quorum("synthesise", config, 100, result)
    with pytest.raises(QuorumError, match=r"60 of 100 nodes.*federation\.quorums\.finetune=0\.9 needs 90.*and 20 more"):
        need_quorum("finetune", config, 100, result)


def test_a_phase_gone_through_again_after_a_resume_adds_up() -> None:
    one = Exchange(answers={"a": 1}, asked=2, up={"a": 5}, down={"a": 7, "b": 7}, seconds=1.0).entry("refresh")
    two = Exchange(answers={"b": 1}, asked=1, up={"b": 6}, down={"b": 8}, registry={"b": 9}, seconds=2.0)
    found = with_earlier(two.entry("refresh"), one)
    assert (found["seconds"], found["bytes"], found["asked"]) == (3.0, {"up": 11, "down": 22}, 1)
    assert found["ledger"][1] == {"node": "b", "up": 6, "down": 15, "registry": 9, "edge": 0}
