"""A set on its way straight from a user to its edge, over real HTTP, and what the edge's node makes of it."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from pathlib import Path

import pytest
from flwr.app import Context, RecordDict

from clients import sets
from clients.node import Node, NodeError, node_of
from clients.sets import Way, by_edge, captions_of, collected, deliver, spool_of, way_of
from fedkd.recipe import Recipe, load_recipe
from fedkd.serving.background import in_background
from fedkd.serving.sets_http import create_sets_app
from fedkd.serving.spool import Spool
from fedkd.serving.tokens import book_of
from tests.server.puppets import picture_set


@pytest.fixture(scope="module")
def recipe() -> Recipe:
    return load_recipe("quickstart", ["federation.sets_route=edge"])


@pytest.fixture()
def url(tmp_path: Path) -> Iterator[str]:
    app = create_sets_app(tmp_path / "spool", book_of({"ann": "of-ann", "bob": "of-bob"}), 2**20)
    with in_background(app) as url:
        yield url


def user(**config: object) -> Node:
    return Node("user", "ann", 0, "edge-0", Path("unused"), config=config)


def receipt(data: bytes, user: str = "ann", **other: object) -> dict[str, object]:
    facts = {"user": user, "digest": hashlib.sha256(data).hexdigest(), "bytes": len(data), "count": 4}
    return {**facts, **other}


def test_the_same_set_goes_once_and_its_edge_finds_it(url: str, tmp_path: Path, recipe: Recipe) -> None:
    data, way = picture_set(1), Way(url, "of-ann")
    facts = {"digest": hashlib.sha256(data).hexdigest(), "bytes": len(data)}
    assert deliver(data, "ann", way) == {**facts, "sent": len(data)}
    assert deliver(data, "ann", way) == {**facts, "sent": 0}
    rows, missing = collected(Spool(tmp_path / "spool"), [receipt(data)], recipe)
    assert len(rows) == 4 and missing == {}
    assert captions_of(rows, 3, 0) == ["a seven"] * 3


def test_another_users_token_is_refused_and_not_told(url: str) -> None:
    with pytest.raises(NodeError, match=r"does not take the set \(403: this token is another user's\)") as error:
        deliver(picture_set(1), "ann", Way(url, "of-bob"))
    assert "of-bob" not in str(error.value)


def test_a_service_that_is_away_for_a_moment_is_tried_again(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sets, "PAUSE_S", 0.01)
    with pytest.raises(NodeError, match=r"the edge's service at http://127.0.0.1:9 does not take the set \(Connect"):
        deliver(b"set", "ann", Way("http://127.0.0.1:9", "of-ann"))


def test_a_set_that_is_missing_or_not_the_receipts_is_named_and_the_others_are_used(
    tmp_path: Path, recipe: Recipe
) -> None:
    spool = Spool(tmp_path)
    good, changed, short, junk = picture_set(1), picture_set(2), picture_set(3), b"PAR1 not really"
    told = [receipt(good, "good"), receipt(good, "away"), receipt(changed, "changed"), receipt(short, "short", count=3)]
    told += [receipt(junk, "junk"), receipt(good, "larger", bytes=1), receipt(good, "../good")]
    for each, data in zip(told, (good, None, changed[:-1] + b"!", short, junk, good, None), strict=True):
        if data is not None:
            path = spool.path(str(each["user"]), str(each["digest"]))
            path.parent.mkdir()
            path.write_bytes(data)
    rows, missing = collected(spool, told, recipe)
    assert len(rows) == 4
    assert missing.pop("away") == "its set has not come to the edge"
    words = {"changed": "another sha256", "short": "4 pictures", "junk": "not Parquet", "larger": "receipt says 1"}
    assert set(missing) == {*words, "../good"}
    assert all(word in missing[name] for name, word in words.items())


def test_where_a_set_goes_is_said_by_the_users_own_configuration(tmp_path: Path) -> None:
    (tmp_path / "token").write_text("of-ann\n")
    there = {"edge-url": "https://edge.example/", "edge-token-file": str(tmp_path / "token")}
    assert way_of(user(**there)) == Way("https://edge.example", "of-ann")
    for config, word in (
        ({}, "edge-url"),
        ({"edge-url": "edge:80"}, "edge-url"),
        ({"edge-url": "http://e"}, "edge-token-file"),
        ({"edge-url": "http://e", "edge-token-file": "/nowhere"}, "edge-token-file='/nowhere'"),
        ({**there, "edge-ca": "/nowhere"}, "edge-ca"),
    ):
        with pytest.raises(NodeError, match=word):
            way_of(user(**config))
    with pytest.raises(NodeError, match="spool"):
        spool_of(user())


def test_a_node_may_forbid_the_way_through_the_cloud(recipe: Recipe) -> None:
    assert by_edge(user(), recipe) and by_edge(user(**{"sets-route": "edge"}), recipe) and not by_edge(user(), Recipe())
    with pytest.raises(NodeError, match=r"federation\.sets_route=federation, this node's sets-route is edge"):
        by_edge(user(**{"sets-route": "edge"}), Recipe())
    with pytest.raises(NodeError, match="sets-route='cloud' is not allowed"):
        by_edge(user(**{"sets-route": "cloud"}), recipe)


def test_a_deployed_and_a_simulated_node_know_their_configuration(tmp_path: Path, recipe: Recipe) -> None:
    def context(config: dict[str, str | int]) -> Context:
        return Context(run_id=1, node_id=1, node_config=config, state=RecordDict(), run_config={})

    (tmp_path / "nodes/user-0").mkdir(parents=True)
    (tmp_path / "nodes/user-0/config.json").write_text('{"edge-url": "http://e"}')
    simulated = context({"partition-id": recipe.federation.edges, "num-partitions": 6})
    assert node_of(simulated, recipe, str(tmp_path)).config == {"edge-url": "http://e"}
    deployed = context({"role": "user", "edge-url": "http://f", "cache": str(tmp_path)})
    assert node_of(deployed, recipe, "").config["edge-url"] == "http://f"
