"""A whole federation of real clients (a small real pipeline) that signs what it publishes."""

from __future__ import annotations

from pathlib import Path

import pytest

from fedkd.checkpoints.manifest import SIGNATURE_NAME, CheckpointError
from fedkd.checkpoints.signing import TrustPolicy, generate_keys, verify
from server.exchange import QuorumError
from tests.server.conftest import federation, small_recipe


def signing(public: Path, private: Path | None = None) -> tuple[str, ...]:
    overrides = (f"serving.trusted_keys=[{public}]", "serving.require_signature=true", "federation.rounds=1")
    overrides = (*overrides, "federation.users=2")
    return (*overrides, f"run.signing_key={private}") if private else overrides


def test_the_server_signs_and_edges_and_users_verify(tiny_folder: Path, tmp_path: Path) -> None:
    private, public = generate_keys(tmp_path / "keys")
    made = federation(small_recipe(tiny_folder, tmp_path, *signing(public, private)), tmp_path)
    made.go()
    policy = TrustPolicy(True, [public])
    for version in ("tiny:v0", "tiny:v1"):
        verify(made.registry.resolve(version), policy)
    for edge in ("edge-0", "edge-1"):
        served = made.run / "nodes" / edge / "cache/versions" / made.registry.manifest("tiny").digest
        assert (served / SIGNATURE_NAME).read_bytes() == made.registry.signature("tiny:v1")
        verify(served, policy)
    other = small_recipe(tiny_folder, tmp_path, *signing(public, generate_keys(tmp_path / "other")[0]))
    (made.run / "state/round-000/base.json").unlink()
    with pytest.raises(CheckpointError, match="was signed with another key before"):
        federation(other, tmp_path).go()


def test_edges_that_require_signatures_refuse_an_unsigned_base(tiny_folder: Path, tmp_path: Path) -> None:
    public = generate_keys(tmp_path / "keys")[1]
    made = federation(small_recipe(tiny_folder, tmp_path, *signing(public)), tmp_path)
    with pytest.raises(QuorumError, match="tiny:v0 is not signed"):
        made.go()


def test_a_missing_signing_key_stops_the_server_before_any_work(tiny_folder: Path, tmp_path: Path) -> None:
    recipe = small_recipe(tiny_folder, tmp_path, "run.signing_key=/none.key")
    with pytest.raises(CheckpointError, match=r"'/none\.key' cannot be used as a key"):
        federation(recipe, tmp_path)
