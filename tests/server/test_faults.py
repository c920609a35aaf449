"""What happens to real federations: nodes come late, go, come back, lie and fail; the server is killed anywhere."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from flwr.app import Message
from safetensors.torch import load, save

from clients.payload import pack, unpack
from fedkd.checkpoints.audit_chain import parsed, read_lines
from fedkd.checkpoints.audit_check import verify_log
from fedkd.models.adapter import file_metadata
from server import exchange
from server.rounds import Federation
from server.state import PHASES, RunState
from server.summary import compose
from tests.server.puppets import Puppets, adapter, light_recipe, puppet_federation


def report_of(made: Federation) -> dict[str, Any]:
    return compose(made.recipe, made.run, made.registry.root)


def told(made: Federation) -> dict[tuple[int, str, str], str]:
    return {(e["round"], e["phase"], e["node"]): e["what"] for e in report_of(made)["events"]}


def logged(made: Federation, event: str) -> list[dict[str, Any]]:
    return [line for line in parsed(read_lines(made.run)) if line["event"] == event]


@pytest.fixture(scope="module")
def lived(tiny_folder: Path, tiny_pipeline: Any, tmp_path_factory: pytest.TempPathFactory) -> Federation:
    """Four rounds: user-1 joins late, user-2 goes for good, edge-1 is away in rounds 2 and 3."""
    out = tmp_path_factory.mktemp("lived")
    recipe = light_recipe(tiny_folder, out, "federation.rounds=4", "federation.quorum=0.3")

    def here(partition: int, number: int) -> bool:
        return {1: number not in (2, 3), 3: number > 1, 4: number == 1}.get(partition, True)

    made = puppet_federation(recipe, Puppets(recipe, tiny_pipeline), out, here=here)
    made.go()
    return made


def test_a_late_joiner_takes_part_and_who_is_gone_costs_only_its_share(lived: Federation) -> None:
    rounds = report_of(lived)["rounds"]
    users = [[user["name"] for user in entry["users"]] for entry in rounds]
    without_1, without_2 = ["user-0", "user-2", "user-3"], ["user-0", "user-1", "user-3"]
    assert users == [without_1, ["user-0", "user-1"], ["user-0", "user-1"], without_2]
    assert [[edge["name"] for edge in entry["edges"]] for entry in rounds] == [
        ["edge-0", "edge-1"],
        ["edge-0"],
        ["edge-0"],
        ["edge-0", "edge-1"],
    ]
    events = told(lived)
    assert events[2, "describe", "user-1"] == "it joined late"
    assert events[2, "describe", "user-2"] == events[2, "describe", "edge-1"] == "it is not there"
    assert events[2, "synthesise", "user-3"].endswith("its edge 'edge-1' takes no part in this round")
    assert events[4, "describe", "edge-1"] == "it is back" and (4, "describe", "user-2") not in events


def test_an_edge_that_is_back_with_an_old_checkpoint_is_refreshed(lived: Federation) -> None:
    puppets: Any = lived.grid.app  # type: ignore[attr-defined]
    assert [phase for name, phase in puppets.work if name == "edge-1"].count("refresh") == 2
    fourth = report_of(lived)["rounds"][3]["phases"]
    assert [(p["asked"], p["answered"]) for p in fourth if p["name"] == "refresh"] == [(1, 1)]
    assert {puppets.digests[f"edge-{n}"] for n in (0, 1)} == {lived.registry.manifest("tiny").digest}


def test_bytes_are_counted_by_round_phase_and_node(lived: Federation) -> None:
    for entry in report_of(lived)["rounds"]:
        phases = {phase["name"]: phase for phase in entry["phases"]}
        for phase in phases.values():
            for way in ("up", "down"):
                assert phase["bytes"][way] == sum(line[way] for line in phase["ledger"])
        assert {line["node"] for line in phases["synthesise"]["ledger"]} == {user["name"] for user in entry["users"]}
        assert all(line["up"] > 4 * 32 * 32 * 3 for line in phases["synthesise"]["ledger"])
        pulled = sum(line["registry"] for phase in phases.values() for line in phase["ledger"])
        assert pulled == entry["checkpoint_bytes"]["moved"] > 0


def test_the_audit_log_says_who_gave_what_to_which_checkpoint(lived: Federation) -> None:
    assert verify_log(lived.run).problem == ""
    published = logged(lived, "published")
    assert [line["checkpoint"] for line in published] == [f"tiny:v{n}" for n in range(5)]
    gave = {(line["round"], line["node"]): line for line in logged(lived, "gave")}
    assert len(gave) == 3 + 2 + 2 + 3 + 6
    for line in published[1:]:
        assert line["digest"] == lived.registry.manifest(line["checkpoint"]).digest
        for edge, lesson in line["teachers"].items():
            assert lesson["adapter"] == gave[line["round"], edge]["digest"] and 0 < lesson["lambda"] <= 1
    assert gave[1, "user-3"]["pictures"] == 4 and gave[1, "user-3"]["edge"] == "edge-1"


def garbage(message: Message, reply: Message | None) -> Message | None:
    assert reply is not None
    task, _ = unpack(reply.content, max_bytes=2**30)
    return Message(pack(task, {"set": b"PAR1 not really"}), reply_to=message)


def with_nan(message: Message, reply: Message | None) -> Message | None:
    assert reply is not None
    task, files = unpack(reply.content, max_bytes=2**30)
    tensors = {key: value * float("nan") for key, value in load(files["adapter"]).items()}
    return Message(pack(task, {"adapter": save(tensors, metadata=file_metadata(files["adapter"]))}), reply_to=message)


def test_each_of_many_faults_costs_its_own_share_and_is_named(
    tiny_folder: Path, tiny_pipeline: Any, tmp_path: Path
) -> None:
    sizes = ("federation.edges=6", "federation.users=8", "federation.rounds=1")
    deadlines = ("federation.quorums.synthesise=0.7", "federation.deadlines_s.synthesise=0.5")
    recipe = light_recipe(tiny_folder, tmp_path, *sizes, *deadlines)
    puppets = Puppets(recipe, tiny_pipeline)
    puppets.adapters["edge-1"] = adapter(tiny_pipeline, 1, common=-1.0)
    puppets.adapters["edge-2"] = adapter(tiny_pipeline, 2, common=8.0, own=8.0)
    puppets.adapters["edge-3"] = adapter(tiny_pipeline, 3, common=1e5)
    users = {partition - 6: partition for partition in range(6, 14)}
    faults = {(users[0], "synthesise"): garbage, (0, "finetune"): with_nan}
    made = puppet_federation(recipe, puppets, tmp_path, faults, late=[(users[4], "synthesise")], twice=[users[7]])
    made.go()
    events = told(made)
    assert "the set is not Parquet" in events[1, "synthesise", "user-0"]
    assert events[1, "synthesise", "user-4"] == "left out: no answer within 0.5 s"
    assert events[1, "synthesise", "user-7"] == "it answered more than once: the first answer counts"
    assert "not finite" in events[1, "finetune", "edge-0"]
    assert "times its weight (limit 10)" in events[1, "finetune", "edge-3"]
    assert "points away" in events[1, "distil", "edge-1"]
    assert "norm" in events[1, "distil", "edge-2"]
    weights = report_of(made)["rounds"][0]["student"]["teacher_weights"]
    assert weights["edge-1"] == weights["edge-2"] == 0 < min(weights["edge-4"], weights["edge-5"])
    assert {line["node"] for line in logged(made, "refused")} == {"user-0", "edge-0", "edge-3"}
    assert {line["node"] for line in logged(made, "distrusted")} == {"edge-1", "edge-2"}
    assert [line["node"] for line in logged(made, "duplicate")] == ["user-7", "user-7"]  # also its description
    assert made.current == "tiny:v1"


class Killed(BaseException):
    """The server's end, as sudden as SIGKILL to what is written on the disk."""


KILLS = ("base", "describe", "refresh", "synthesise", "finetune", "distil", "publish", "redistribute")


def killed_in(made: Federation, phase: str, after: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Let the server run until `phase`, and kill it there: at its beginning, or when it has taken `after` answers."""
    grid: Any = made.grid
    pull, event, now, pulled = grid.pull_messages, RunState.event, [""], [0]

    def pull_or_die(message_ids: Any) -> Any:
        found = pull(message_ids)
        pulled[0] += len(found) * (now[0] == phase)
        if pulled[0] > after:
            raise Killed
        return found

    def event_or_die(state: RunState, kind: str, **facts: Any) -> None:
        event(state, kind, **facts)
        now[0] = facts["phase"] if kind == "phase_start" else now[0]
        if now[0] == phase in ("base", "distil", "publish"):
            raise Killed

    monkeypatch.setattr(grid, "pull_messages", pull_or_die)
    monkeypatch.setattr(RunState, "event", event_or_die)
    with pytest.raises(Killed):
        made.go()
    monkeypatch.setattr(RunState, "event", event)


def test_a_server_killed_in_every_phase_resumes_without_asking_anybody_twice(
    tiny_folder: Path, tiny_pipeline: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(exchange, "FIRST_PULLED", 1)
    monkeypatch.setattr(exchange, "PULLED", 1)
    recipe = light_recipe(tiny_folder, tmp_path, "federation.rounds=1")
    puppets = Puppets(recipe, tiny_pipeline)
    for phase in KILLS:
        made = puppet_federation(recipe, puppets, tmp_path)
        killed_in(made, phase, 1, monkeypatch)
    made = puppet_federation(recipe, puppets, tmp_path)
    made.go()
    synthesised = sorted(name for name, phase in puppets.work if phase == "synthesise")
    assert synthesised == sorted([f"user-{n}" for n in range(4)] + [f"user-{n}" for n in range(1, 4)])
    assert sorted(n for n, phase in puppets.work if phase == "finetune") == ["edge-0", "edge-1", "edge-1"]
    assert [line["phase"] for line in logged(made, "resumed")] == list(KILLS)
    resumed = [e["phase"] for e in report_of(made)["events"] if e["what"].startswith("it was stopped here")]
    assert resumed == list(KILLS) and set(PHASES) <= set(KILLS)
    assert verify_log(made.run).problem == ""
    phases = {phase["name"]: phase for phase in report_of(made)["rounds"][0]["phases"]}
    assert (phases["synthesise"]["asked"], len(phases["synthesise"]["ledger"])) == (4, 4)

    whole = tmp_path / "whole"
    again = puppet_federation(recipe, Puppets(recipe, tiny_pipeline), whole)
    again.go()
    student = "state/round-001/student.safetensors"
    assert (made.run / student).read_bytes() == (again.run / student).read_bytes()
    assert made.registry.manifest("tiny").digest == again.registry.manifest("tiny").digest
