"""A node: takes the published checkpoint from signers it trusts, and goes on with the old one otherwise."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
from flwr.app import Context, RecordDict

from clients.edge import refresh
from clients.node import Node, NodeError, Request, describe, node_of
from clients.payload import unpack
from fedkd.checkpoints.manifest import SIGNATURE_NAME, CheckpointError, Manifest
from fedkd.checkpoints.signing import TrustPolicy, generate_keys
from fedkd.recipe import Recipe, RecipeError
from tests.checkpoints.published import Source
from tests.checkpoints.web import registry_at


def context(**config: str | int | float | bool) -> Context:
    return Context(run_id=1, node_id=1, node_config=dict(config), state=RecordDict(), run_config={})


def instruction(node: Node, source: Source, manifest: Manifest, *, lacking: set[str] | None = None) -> Request:
    """What the server sends: the manifest as published, its signature, and the blobs that the node lacks."""
    blobs = {entry.sha256: source.registry.blobs.path(entry.sha256).read_bytes() for entry in manifest.files}
    files = {sha256: data for sha256, data in blobs.items() if lacking is None or sha256 in lacking}
    if signature := source.registry.signature(manifest.reference):
        files[SIGNATURE_NAME] = signature
    return Request(Recipe(), node, {"manifest": source.text(manifest)}, files)


def pulling(node: Node, source: Source, manifest: Manifest, url: str) -> Request:
    """What the server sends when nodes pull: the manifest, its signature, and where the blobs are."""
    bare = instruction(node, source, manifest, lacking=set())
    return Request(Recipe(), node, {**bare.task, "registry": url}, bare.files)


def answered(content: RecordDict) -> dict[str, object]:
    return unpack(content, max_bytes=2**20)[0]


@pytest.fixture()
def source(tmp_path: Path) -> Source:
    return Source(tmp_path / "source", generate_keys(tmp_path / "keys")[0])


@pytest.fixture()
def edge(tmp_path: Path, source: Source) -> Node:
    """An edge that takes signatures of the source's key alone."""
    policy = TrustPolicy(True, (tmp_path / "keys/signing.pub",))
    return Node("edge", "edge-0", 0, "edge-0", tmp_path / "edge", policy=policy)


def test_an_edge_takes_what_the_trusted_server_signed(edge: Node, source: Source) -> None:
    one, two = source.publish("one"), source.publish("two")
    assert answered(refresh(instruction(edge, source, one)))["digest"] == one.digest
    held = set(edge.cache.held())
    answer = answered(refresh(instruction(edge, source, two, lacking=set(two.blobs) - held)))
    assert answer["digest"] == two.digest
    shared = one.size_bytes + two.size_bytes - sum((one.blobs | two.blobs).values())
    assert answer["cache"] == {
        "hits": 0,
        "misses": 2,
        "bytes_fetched": one.size_bytes + two.size_bytes - shared,
        "bytes_saved": shared,
    }


def test_an_edge_refuses_another_key_and_no_key_and_goes_on(edge: Node, source: Source, tmp_path: Path) -> None:
    one = source.publish("one")
    refresh(instruction(edge, source, one))
    for name, key in {"other": generate_keys(tmp_path / "other")[0], "unsigned": None}.items():
        stranger = Source(tmp_path / name, key)
        with pytest.raises(CheckpointError, match=r"not trusted|not signed"):
            refresh(instruction(edge, stranger, stranger.publish("two")))
        assert edge.cache.path().name == edge.cache.digest == one.digest


def test_a_damaged_edge_says_so_and_is_mended_by_the_next_refresh(edge: Node, source: Source) -> None:
    one = source.publish("one")
    refresh(instruction(edge, source, one))
    assert answered(describe(instruction(edge, source, one)))["digest"] == one.digest
    damaged = one.files[-1].sha256
    blob = edge.cache.blobs.path(damaged)
    blob.chmod(0o644)
    blob.write_bytes(b"x")
    facts = answered(describe(instruction(edge, source, one)))
    blobs = facts["blobs"]
    assert facts["digest"] == "" and isinstance(blobs, list) and damaged not in blobs
    answer = answered(refresh(instruction(edge, source, one, lacking=set(one.blobs) - set(blobs))))
    assert answer["digest"] == one.digest == edge.cache.sound_digest()


def test_a_blob_that_was_not_sent_is_named(edge: Node, source: Source) -> None:
    with pytest.raises(CheckpointError, match="is not here and was not sent"):
        refresh(instruction(edge, source, source.publish("one"), lacking=set()))


def test_an_edge_pulls_what_it_lacks_and_tells_what_that_cost(tmp_path: Path, source: Source, edge: Node) -> None:
    one, two = source.publish("one"), source.publish("two")
    costs = []
    with registry_at(source.registry.root) as (url, requests):
        for manifest in (one, two, two):
            answer = answered(refresh(pulling(edge, source, manifest, url)))
            assert answer["digest"] == manifest.digest
            costs.append(answer["checkpoint_bytes"])
    new = sum(size for sha256, size in two.blobs.items() if sha256 not in one.blobs)
    assert costs[0] == {"fetched": one.size_bytes, "saved": 0, "full": one.size_bytes}
    assert costs[1] == {"fetched": new, "saved": two.size_bytes - new, "full": two.size_bytes}
    assert costs[2] == {"fetched": 0, "saved": 0, "full": 0}
    assert len(requests.blobs) == len({*one.blobs, *two.blobs})


def test_a_pull_that_fails_costs_an_edge_nothing_that_it_has(edge: Node, source: Source, tmp_path: Path) -> None:
    one, two = source.publish("one"), source.publish("two")
    refresh(instruction(edge, source, one))
    with registry_at(source.registry.root, "secret") as (url, _), pytest.raises(CheckpointError, match="the token"):
        refresh(pulling(edge, source, two, url))
    with pytest.raises(CheckpointError, match="cannot be reached"):
        refresh(pulling(edge, source, two, url))
    with pytest.raises(RecipeError, match=r"registry='ftp://x' is no place"):
        refresh(pulling(edge, source, two, "ftp://x"))
    assert edge.cache.path().name == edge.cache.digest == one.digest


def test_a_damaged_blob_is_pulled_again_when_the_checkpoint_is_used(edge: Node, source: Source) -> None:
    one = source.publish("one")
    refresh(instruction(edge, source, one))
    blob = edge.cache.blobs.path(one.files[-1].sha256)
    blob.chmod(0o644)
    blob.write_bytes(b"x")
    with registry_at(source.registry.root) as (url, _), pulling(edge, source, one, url).cache.lease() as folder:
        assert folder.name == one.digest == edge.cache.sound_digest()


def test_a_node_pulls_from_the_place_of_its_own_configuration(edge: Node, source: Source) -> None:
    one = source.publish("one")
    own = replace(edge, registry=source.registry.root.as_uri())
    refresh(pulling(own, source, one, "http://127.0.0.1:1"))
    assert edge.cache.digest == one.digest
    configured = node_of(context(role="edge", registry="https://mirror.example"), Recipe(), "")
    assert configured.registry == "https://mirror.example"
    with pytest.raises(RecipeError, match="node-config registry='mirror' is no place"):
        node_of(context(role="edge", registry="mirror"), Recipe(), "")


def test_in_a_simulation_the_recipe_says_whom_nodes_trust(tmp_path: Path) -> None:
    recipe = Recipe()
    recipe.serving.require_signature, recipe.serving.trusted_keys = True, ["/keys/server.pub"]
    recipe.serving.cache_mb = 2.0
    node = node_of(context(**{"partition-id": 0, "num-partitions": 6}), recipe, str(tmp_path))
    assert node.policy == TrustPolicy(True, (Path("/keys/server.pub"),)) and node.cache_bytes == 2 * 2**20


def test_a_deployed_node_trusts_its_own_keys_alone(tmp_path: Path) -> None:
    recipe, public = Recipe(), generate_keys(tmp_path)[1]
    recipe.serving.trusted_keys = ["/keys/of/whoever/sends/the/recipe.pub"]
    own = {"role": "edge", "name": "ann", "trusted-keys": f"{public}", "require-signature": "true", "cache-mb": 3}
    node = node_of(context(**own), recipe, "")
    assert node.policy == TrustPolicy(True, (public,)) and node.cache_bytes == 3 * 2**20
    assert node_of(context(role="edge"), recipe, "").policy == TrustPolicy(False, ())


def test_a_deployed_node_without_usable_keys_says_what_to_do(tmp_path: Path) -> None:
    recipe = Recipe()
    with pytest.raises(NodeError, match=r"'/none\.pub', which does not exist"):
        node_of(context(**{"role": "edge", "trusted-keys": "/none.pub"}), recipe, "")
    with pytest.raises(NodeError, match="this node trusts no key"):
        node_of(context(**{"role": "edge", "require-signature": True}), recipe, "")
    with pytest.raises(NodeError, match="require-signature='on' is not allowed"):
        node_of(context(**{"role": "edge", "require-signature": "on"}), recipe, "")
    recipe.serving.require_signature = True
    with pytest.raises(NodeError, match="this node trusts no key"):
        node_of(context(role="edge"), recipe, "")
