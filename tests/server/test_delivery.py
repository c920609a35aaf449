"""Checkpoints get to nodes through the registry, and the report says what moved of what."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from clients.payload import unpack
from fedkd.checkpoints.manifest import SIGNATURE_NAME, CheckpointError
from fedkd.checkpoints.registry import Registry
from fedkd.serving.background import in_background
from fedkd.serving.registry_http import create_registry_app
from server.delivery import Shopfront, check_bytes, delivered, record
from server.exchange import QuorumError
from server.rounds import Federation
from server.state import RunState
from server.summary import compose
from tests.checkpoints.published import Source
from tests.server.conftest import Done, small_recipe
from tests.server.loopback_grid import LoopbackGrid


def one_round(model: Path, out: Path, url: str, *overrides: str) -> Federation:
    """One round of two edges and four users (a small real pipeline) who pull from `url`."""
    recipe = small_recipe(model, out, "federation.rounds=1", *overrides)
    run = out / "small"
    run.mkdir(parents=True, exist_ok=True)
    return Federation(LoopbackGrid(6), recipe, run, run / "registry", registry_url=url, wait_s=1.0)


def carried(federation: Federation) -> set[str]:
    """Names of all files in all messages to nodes."""
    sent = federation.grid.sent  # type: ignore[attr-defined]
    return {name for message in sent for name in unpack(message.content, max_bytes=2**30)[1]}


def test_nodes_pull_over_http_and_no_message_carries_a_checkpoint(
    tiny_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("FEDKD_TOKEN", "secret")
    with in_background(create_registry_app(tmp_path / "small/registry", "secret")) as url:
        made = one_round(tiny_folder, tmp_path, url)
        made.go()
    assert carried(made) <= {SIGNATURE_NAME, *(f"user-{n}" for n in range(4))}
    base, student = (made.registry.manifest(f"tiny:{version}") for version in ("v0", "v1"))
    for edge in ("edge-0", "edge-1"):
        assert (made.run / "nodes" / edge / "cache/current").read_text() == student.digest
    cost = compose(made.recipe, made.run, made.registry.root)["rounds"][0]["checkpoint_bytes"]
    assert cost["via"] == "registry" and (cost["models"], cost["nodes"]) == (8, 6)
    assert cost["full"] == 6 * base.size_bytes + 2 * student.size_bytes
    assert 0 < cost["moved"] <= sum(base.blobs.values()) * 6 + sum(student.blobs.values()) * 2
    assert cost["share"] == cost["moved"] / cost["full"] < 1
    assert student.edges == ("edge-0", "edge-1")


def test_without_a_place_to_pull_from_the_blobs_go_along(undisturbed: Done) -> None:
    base = undisturbed.federation.registry.manifest("tiny:v0")
    assert set(base.blobs) <= carried(undisturbed.federation)
    rounds = compose(undisturbed.recipe, undisturbed.run, undisturbed.run / "registry")["rounds"]
    costs = [item["checkpoint_bytes"] for item in rounds]
    assert [cost["via"] for cost in costs] == ["messages", "messages"]
    assert [cost["models"] for cost in costs] == [8, 6]  # the base and the first student; then students alone
    assert costs[1]["share"] < costs[0]["share"]


def test_nodes_that_cannot_pull_say_so_in_one_line(
    tiny_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("FEDKD_TOKEN", "wrong")
    with in_background(create_registry_app(tmp_path / "small/registry", "secret")) as url:
        made = one_round(tiny_folder, tmp_path, url)
        with pytest.raises(QuorumError, match=r"edge-0: it raised: .*refuses the token \(401\)") as raised:
            made.go()
    assert "\n" not in str(raised.value)


def test_a_store_that_is_not_the_registry_gets_each_version(tmp_path: Path) -> None:
    source = Source(tmp_path / "source")
    one = source.publish("one")
    store = Shopfront(source.registry, f"file://{tmp_path}/store")
    store.offer(one.reference)
    assert Registry(tmp_path / "store").resolve(one.reference).is_dir()
    two = source.publish("two")
    store.offer(two.reference)
    assert Registry(tmp_path / "store").manifest("m").digest == two.digest


def test_a_registry_that_is_served_or_shared_itself_gets_no_copy(tmp_path: Path) -> None:
    registry = Source(tmp_path / "source").registry
    for url in ("", "http://127.0.0.1:1", f"file://{tmp_path}/source/../source/registry"):
        assert not Shopfront(registry, url).needs_push
    assert Shopfront(registry, "s3://bucket/path").needs_push


def test_a_store_that_takes_nothing_stops_the_server_with_one_line(tmp_path: Path) -> None:
    source = Source(tmp_path / "source")
    one = source.publish("one")
    Source(tmp_path / "other").publish("other")
    store = Shopfront(source.registry, f"file://{tmp_path}/other/registry")
    with pytest.raises(CheckpointError, match="already has another m:v0"):
        store.offer(one.reference)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"fetched": "7"}, "not a number"),
        ({"fetched": -1}, "not a number"),
        ({"saved": 1.5}, "not a number"),
        ({"full": True}, "not a number"),
        ({"full": 1}, "of another model"),
        ({"full": 0, "fetched": 1}, "more than the model has"),
        ({"fetched": 2**62}, "more than the model has"),
        ({"saved": 2**62}, "more than the model has"),
    ],
)
def test_bytes_that_a_node_makes_up_are_refused(tmp_path: Path, change: dict[str, Any], words: str) -> None:
    manifest = Source(tmp_path).publish("one")
    told = {"fetched": manifest.size_bytes, "saved": 0, "full": manifest.size_bytes}
    assert check_bytes({"checkpoint_bytes": told}, manifest) == told
    with pytest.raises(ValueError, match=words):
        check_bytes({"checkpoint_bytes": {**told, **change}}, manifest)


def test_a_rounds_record_grows_and_leaves_out_who_took_nothing(tmp_path: Path) -> None:
    state = RunState(tmp_path)
    nothing = {"moved": 0, "full": 0, "models": 0, "nodes": 0, "share": None, "via": ""}
    assert delivered(state, 1) == nothing
    took, had = {"fetched": 4, "saved": 6, "full": 10}, {"fetched": 0, "saved": 0, "full": 0}
    record(state, 1, "refresh", "http://cloud", {"edge-0": took, "edge-1": had})
    record(state, 1, "redistribute", "http://cloud", {"edge-0": {**took, "fetched": 1}})
    record(state, 1, "refresh", "http://cloud", {"edge-0": had})  # once more, after a server that was killed
    assert delivered(state, 1) == {
        "moved": 5,
        "full": 20,
        "models": 2,
        "nodes": 1,
        "share": 0.25,
        "via": "registry",
    }
