"""A federation whose sets go straight from users to edges: real HTTP, real messages, and a cloud without sets."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from flwr.app import Message

from clients.payload import pack, unpack
from fedkd.checkpoints.audit_chain import parsed, read_lines
from fedkd.data.packing import unpack_dataset
from fedkd.recipe import Recipe, load_recipe
from server.receipts import check_captions, check_missing, check_receipt
from server.rounds import Federation
from server.set_services import simulated_services
from server.summary import compose
from tests.server.conftest import federation, small_recipe

ROUTE = "federation.sets_route=edge"


@dataclass
class Done:
    """A finished run, what an edge's spool held, and its log."""

    made: Federation
    report: dict[str, Any]
    sets: dict[str, bytes]
    audit: list[dict[str, Any]]


@pytest.fixture(scope="module")
def done(tiny_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Done]:
    """One round; user-1's set is lost at its edge before the edge learns, and user-3 sends its set to the cloud."""
    out = tmp_path_factory.mktemp("route")
    recipe = small_recipe(tiny_folder, out, "federation.rounds=1", ROUTE)
    spools = out / "small/nodes"
    sets: dict[str, bytes] = {}

    def lost(message: Message, reply: Message | None) -> Message | None:
        assert reply is not None
        task, files = unpack(reply.content, max_bytes=2**30)
        assert not files and set(task["receipt"]) == {"digest", "bytes", "sent", "count"}
        path = spools / f"edge-0/spool/user-1/{task['receipt']['digest']}.parquet"
        sets["user-1"] = path.read_bytes()
        path.unlink()
        return reply

    def told(message: Message, reply: Message | None) -> Message | None:
        assert reply is not None
        task, _ = unpack(reply.content, max_bytes=2**30)
        return Message(pack(task, {"set": b"a set"}), reply_to=message)

    made = federation(recipe, out, {(3, "synthesise"): lost, (5, "synthesise"): told})
    with simulated_services(recipe, made.run):
        made.go()
    sets |= {path.parent.name: path.read_bytes() for path in spools.glob("edge-*/spool/*/*.parquet")}
    report = compose(recipe, made.run, made.registry.root)
    yield Done(made, report, sets, list(parsed(read_lines(made.run))))


def test_a_student_is_made_though_the_cloud_never_had_a_set(done: Done) -> None:
    assert done.report["rounds"][0]["student"]["published_as"] == "latest"
    assert len(done.sets) == 4
    grid: Any = done.made.grid
    for message in [*grid.sent, *grid.received]:
        _, files = unpack(message.content, max_bytes=2**30)
        assert not any(data == each for data in files.values() for each in done.sets.values())
    for path in [*(done.made.run / "state").rglob("*"), *(done.made.run / "registry").rglob("*")]:
        assert not path.is_file() or path.read_bytes() not in done.sets.values()


def test_the_cloud_draws_with_each_edges_adapter_from_its_captions(done: Done) -> None:
    folder = done.made.state.round_folder(1)
    for edge, users in (("edge-0", ["user-0"]), ("edge-1", ["user-2"])):
        captions = json.loads((folder / f"captions/{edge}.json").read_text())
        own = [caption for user in users for caption in unpack_dataset(done.sets[user])["caption"]]
        assert captions == sorted(own)
        assert list(unpack_dataset((folder / f"drawn/{edge}.parquet").read_bytes())["caption"]) == captions


def test_a_lost_set_is_its_users_event_and_costs_nobody_else(done: Done) -> None:
    events = {(event["phase"], event["node"]): event["what"] for event in done.report["events"]}
    assert events["finetune", "user-1"] == "its set is left out: its set has not come to the edge"
    assert "sent files to the cloud" in events["synthesise", "user-3"]
    assert [edge["name"] for edge in done.report["edges"]] == ["edge-0", "edge-1"]
    refused = {line["node"]: line["why"] for line in done.audit if line["event"] == "refused"}
    assert refused["user-1"] == "its set has not come to the edge"


def test_the_audit_log_has_receipts(done: Done) -> None:
    gave = {line["node"]: line for line in done.audit if line["event"] == "gave"}
    folder = done.made.state.round_folder(1)
    assert set(gave) == {"user-0", "user-1", "user-2", "edge-0", "edge-1"}
    for user in ("user-0", "user-1", "user-2"):
        kept = json.loads((folder / f"receipts/{user}.json").read_text())
        assert gave[user]["what"] == "receipt" and gave[user]["bytes"] == kept["bytes"] == len(done.sets[user])
        assert gave[user]["digest"] == kept["digest"] and gave[user]["pictures"] == kept["count"]
    assert (gave["edge-0"]["sets"], gave["edge-1"]["sets"]) == (1, 1)


def test_bytes_to_edges_are_not_counted_as_the_clouds(done: Done) -> None:
    phase = next(p for p in done.report["rounds"][0]["phases"] if p["name"] == "synthesise")
    lines = {line["node"]: line for line in phase["ledger"]}
    for user in ("user-0", "user-1", "user-2"):
        assert lines[user]["edge"] == len(done.sets[user]) and lines[user]["up"] < 3000
    assert phase["bytes"]["up"] == sum(line["up"] for line in lines.values())
    tuned = next(p for p in done.report["rounds"][0]["phases"] if p["name"] == "finetune")
    assert all(line["down"] < 20_000 for line in tuned["ledger"])


def test_an_edge_with_none_of_its_sets_is_left_out_and_its_users_are_named(tiny_folder: Path, tmp_path: Path) -> None:
    recipe = small_recipe(tiny_folder, tmp_path, "federation.rounds=1", "federation.users=2", ROUTE)

    def lost(message: Message, reply: Message | None) -> Message | None:
        for path in tmp_path.rglob("spool/user-1/*.parquet"):
            path.unlink()
        return reply

    made = federation(recipe, tmp_path, {(3, "synthesise"): lost})
    with simulated_services(recipe, made.run):
        made.go()
    report = compose(recipe, made.run, made.registry.root)
    events = {event["node"]: event["what"] for event in report["events"]}
    assert events["user-1"].endswith("its set has not come to the edge")
    assert "no set of its users could be used" in events["edge-1"]
    assert [edge["name"] for edge in report["edges"]] == ["edge-0"]


def test_without_a_service_each_user_says_what_is_missing(tiny_folder: Path, tmp_path: Path) -> None:
    recipe = small_recipe(tiny_folder, tmp_path, "federation.rounds=1", ROUTE)
    with pytest.raises(ValueError, match=r"federation\.sets_route=edge needs node-config edge-url"):
        federation(recipe, tmp_path).go()


GOOD = {"digest": "ab" * 32, "count": 4, "bytes": 100, "sent": 100}


@pytest.mark.parametrize(
    "wrong",
    [
        {"digest": "AB" * 32},
        {"digest": 1},
        {"count": 0},
        {"count": 10**9},
        {"count": True},
        {"bytes": 2**40},
        {"bytes": 1.5},
        {"sent": 7},
    ],
)
def test_a_receipt_that_cannot_be_is_refused(wrong: dict[str, Any]) -> None:
    assert check_receipt({"receipt": GOOD}, {}, Recipe()) == GOOD
    with pytest.raises(ValueError, match=r"its (receipt|set)"):
        check_receipt({"receipt": GOOD | wrong}, {}, Recipe())


def test_an_edge_misses_only_its_own_users_sets_and_names_no_endless_captions() -> None:
    given = [{"user": "ann"}]
    assert check_missing({"missing": {"ann": "a\nb"}}, given) == {"ann": "a b"}
    with pytest.raises(ValueError, match="not its own"):
        check_missing({"missing": {"bob": ""}}, given)
    for captions in ([], ["a"] * 301, [1], ["a" * 20_000]):
        with pytest.raises(ValueError, match="captions"):
            check_captions({"captions": captions}, Recipe())


def test_a_route_that_is_none_is_named() -> None:
    with pytest.raises(ValueError, match=r"federation\.sets_route='edges' is not allowed; did you mean 'edge'"):
        load_recipe("quickstart", ["federation.sets_route=edges"])
