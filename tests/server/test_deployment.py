"""A real SuperLink with TLS: who gets in, who does not, and that nothing outlives the block."""

from __future__ import annotations

import json
import subprocess
import time
from pathlib import Path
from typing import Any

import pytest

from fedkd.recipe import load_recipe
from server.credentials import make_certificates
from server.deployment import CONNECTION, Deployment, DeploymentError, deployment, node_configs, toml
from server.processes import FLWR, family

WAIT_S = 120.0


def nodes(made: Deployment) -> dict[str, str]:
    """{id: status} of the nodes that the SuperLink knows."""
    command = [*FLWR, "supernode", "list", CONNECTION, "--format", "json"]
    done = subprocess.run(command, env=made.env, cwd=made.folder, capture_output=True, text=True, timeout=60)
    listed: list[dict[str, Any]] = json.loads(done.stdout[done.stdout.index("{") :])["nodes"]
    return {each["node-id"]: each["status"] for each in listed}


def refused(made: Deployment, name: str, why: str, deadline: float) -> bool:
    """Whether the node gave up because it was refused, as its own log says."""
    while time.monotonic() < deadline:
        told = made.parties[name].log.read_text(encoding="utf-8", errors="replace")
        if "Exit Code: 305" in told and why in told:
            return True
        time.sleep(0.5)
    return False


def test_only_a_node_with_a_registered_key_and_the_right_authority_gets_in(tmp_path: Path) -> None:
    recipe = load_recipe("quickstart")
    make_certificates(tmp_path / "elsewhere", ["127.0.0.1"])
    with deployment(recipe, tmp_path / "deployment", start_nodes=False) as made:
        configs = node_configs(recipe)
        made.node("edge-0", configs["edge-0"])
        made.node("stranger", configs["edge-1"], registered=False)
        made.node("misled", configs["user-0"], ca=tmp_path / "elsewhere" / "ca.crt")
        deadline = time.monotonic() + WAIT_S
        good, misled_id = made.ids["edge-0"], made.ids["misled"]
        while (known := nodes(made))[good] != "online" and time.monotonic() < deadline:
            time.sleep(0.5)
        assert refused(made, "stranger", "2004", deadline)
        assert refused(made, "misled", "CERTIFICATE_VERIFY_FAILED", deadline)
        known = nodes(made)
        assert known[good] == "online"
        assert set(known) == {good, misled_id} and known[misled_id] != "online"
        homes = [party.home for party in made.parties.values()]
        assert any(family(home) for home in homes)
        with pytest.raises(DeploymentError, match="did not register 'again'"):
            made.register("again", made.folder / "keys" / "edge-0.pub")
    assert not any(family(home) for home in homes)


def test_a_node_config_is_what_the_command_line_takes() -> None:
    assert toml({"role": "user", "index": 1, "data": '/a "b"'}) == 'role="user" index=1 data="/a \\"b\\""'


def test_nodes_are_those_of_the_simulation() -> None:
    found = node_configs(load_recipe("quickstart", ["federation.edges=2", "federation.users=3"]))
    assert list(found) == ["edge-0", "edge-1", "user-0", "user-1", "user-2"]
    assert found["user-2"] == {"role": "user", "name": "user-2", "index": 2}
