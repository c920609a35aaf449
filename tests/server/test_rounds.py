"""Whole federations over the real clients, without Ray: rounds, faults, quorum."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
from flwr.app import Message
from safetensors.torch import load, save

from clients.payload import pack, unpack
from fedkd.checkpoints.registry import Registry
from server.exchange import QuorumError
from server.rounds import Federation
from server.summary import PHASES, compose
from tests.server.conftest import Done

TWO_USERS = ("federation.users=2",)  # where the fault is an edge's, more would only take longer
EDGE_0, EDGE_1, USER_0, USER_1, USER_2, USER_3 = range(6)
Make = Callable[..., Federation]


def report_of(federation: Federation) -> dict[str, Any]:
    return compose(federation.recipe, federation.run, federation.registry.root)


def left_out(federation: Federation, phase: str) -> dict[str, str]:
    found = next(p for p in report_of(federation)["rounds"][0]["phases"] if p["name"] == phase)
    return {entry["node"]: entry["reason"] for entry in found["left_out"]}


def raising(message: Message, reply: Message | None) -> Message | None:
    raise RuntimeError("the disk is full")


def silent(message: Message, reply: Message | None) -> Message | None:
    return None


def garbage(message: Message, reply: Message | None) -> Message | None:
    assert reply is not None
    task, files = unpack(reply.content, max_bytes=2**30)
    return Message(pack(task, {**files, "set": b"PAR1 not really"}), reply_to=message)


def not_finite(message: Message, reply: Message | None) -> Message | None:
    assert reply is not None
    task, files = unpack(reply.content, max_bytes=2**30)
    tensors = load(files["adapter"])
    size = int.from_bytes(files["adapter"][:8], "little")
    import json

    header = json.loads(files["adapter"][8 : 8 + size])["__metadata__"]
    poisoned = save({key: value * float("nan") for key, value in tensors.items()}, metadata=header)
    return Message(pack(task, {"adapter": poisoned}), reply_to=message)


def test_two_rounds_publish_two_students_and_every_edge_serves_the_last(undisturbed: Done) -> None:
    report = compose(undisturbed.recipe, undisturbed.run, undisturbed.run / "registry")
    assert [entry["checkpoint"] for entry in report["rounds"]] == ["tiny:v1", "tiny:v2"]
    for entry in report["rounds"]:
        assert [phase["name"] for phase in entry["phases"]] == list(PHASES)
        assert entry["bytes"]["up"] > 0 and len(entry["users"]) == 4 and len(entry["edges"]) == 2
        assert set(entry["student"]["teacher_weights"]) >= {"edge-0", "edge-1"}
    assert report["checkpoint"]["version"] == "v2"
    registry = Registry(undisturbed.run / "registry")
    assert registry.manifest("tiny:v2").parents == ("tiny:v1",)
    for edge in ("edge-0", "edge-1"):
        current = (undisturbed.run / "nodes" / edge / "cache" / "current").read_text()
        assert current == registry.manifest("tiny").digest


def test_a_student_shares_everything_but_the_denoiser_and_its_adapter_with_its_parent(undisturbed: Done) -> None:
    registry = Registry(undisturbed.run / "registry")
    one, two = registry.manifest("tiny:v1"), registry.manifest("tiny:v2")
    changed = {e.path for e in two.files} - {e.path for e in two.files if e in one.files}
    assert changed == {"unet/diffusion_pytorch_model.safetensors", "pytorch_lora_weights.safetensors"}


def test_a_published_student_opens_in_plain_diffusers(undisturbed: Done) -> None:
    from diffusers import DiffusionPipeline

    path = Registry(undisturbed.run / "registry").resolve("tiny")
    assert DiffusionPipeline.from_pretrained(path, local_files_only=True).unet is not None


def test_nodes_that_raise_stay_silent_or_send_garbage_cost_only_their_share(run_with: Make) -> None:
    faults = {
        (USER_0, "synthesise"): raising,
        (USER_1, "synthesise"): garbage,
        (USER_2, "synthesise"): silent,
    }
    federation = run_with(faults, "federation.quorum=0.25", "federation.phase_timeout_s=1")
    federation.go()
    reasons = left_out(federation, "synthesise")
    assert "the disk is full" in reasons["user-0"]
    assert "not usable" in reasons["user-1"] and "Parquet" in reasons["user-1"]
    assert "no answer within 1 s" in reasons["user-2"]
    assert [edge["name"] for edge in report_of(federation)["edges"]] == ["edge-1"]
    assert federation.current == "tiny:v1"


def test_an_adapter_that_is_not_finite_is_left_out_and_named(run_with: Make) -> None:
    federation = run_with({(EDGE_0, "finetune"): not_finite}, *TWO_USERS)
    federation.go()
    assert "not finite" in left_out(federation, "finetune")["edge-0"]
    assert [edge["name"] for edge in report_of(federation)["edges"]] == ["edge-1"]


def test_below_quorum_the_run_stops_with_what_it_has_and_goes_on_later(run_with: Make) -> None:
    faults: dict[Any, Any] = {(node, "finetune"): raising for node in (EDGE_0, EDGE_1)}
    federation = run_with(faults, *TWO_USERS)
    with pytest.raises(QuorumError, match=r"finetune: 0 of 2 nodes.*edge-0.*the disk is full.*resume"):
        federation.go()
    stopped = report_of(federation)
    assert len(stopped["rounds"][0]["users"]) == 2 and "student" not in stopped
    assert stopped["rounds"][0]["phases"][-1]["answered"] == 0
    again = run_with({}, *TWO_USERS)
    again.go()
    asked = [message.metadata.message_type for message in again.grid.sent]  # type: ignore[attr-defined]
    assert "train.synthesise" not in asked and again.current == "tiny:v1"
