"""What `fedkd simulate` prepares for Flower's processes: absolute paths, and a registry to pull from."""

from __future__ import annotations

import socket
from pathlib import Path
from urllib.parse import urlsplit

import httpx
import pytest

from fedkd.cli.carry_out import registry_for
from fedkd.cli.run_folder import anchored
from fedkd.recipe import load_recipe
from tests.checkpoints.published import Source


def test_keys_get_absolute_paths(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    keys = ["run.signing_key=keys/signing.key", "serving.trusted_keys=[keys/signing.pub, /etc/fedkd/other.pub]"]
    recipe = anchored(load_recipe("quickstart", keys))
    assert recipe.run.signing_key == str(tmp_path / "keys/signing.key")
    assert recipe.serving.trusted_keys == [str(tmp_path / "keys/signing.pub"), "/etc/fedkd/other.pub"]
    assert anchored(load_recipe("quickstart")).run.signing_key == ""


def test_a_runs_registry_is_served_with_a_token_before_it_exists_and_while_the_run_lasts(tmp_path: Path) -> None:
    source = Source(tmp_path)
    with registry_for(load_recipe("quickstart"), source.registry.root) as (url, token), httpx.Client() as client:
        place, bearer = f"{url}/v1/registry/names/m/latest", {"Authorization": f"Bearer {token}"}
        assert len(token) > 30 and client.get(place).status_code == 401
        assert client.get(place, headers=bearer).status_code == 404
        source.publish("one")
        assert client.get(place, headers=bearer).text == "v0"
    with pytest.raises(OSError):
        socket.create_connection(("127.0.0.1", urlsplit(url).port or 0), timeout=5)


def test_a_recipe_that_names_a_place_needs_none_served(tmp_path: Path) -> None:
    recipe = load_recipe("quickstart", [f"federation.registry_url=file://{tmp_path}/store"])
    with registry_for(recipe, tmp_path) as served:
        assert served == ("", "")
