"""The Hugging Face Hub, by its own library against a stand-in on loopback: card, one commit, tags, only what lacks."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from fedkd.checkpoints.registry import Registry
from tests.checkpoints.folders import make_model, write_weights
from tests.checkpoints.hub_server import HubState, create_hub
from tests.checkpoints.web import running

ROOT = Path(__file__).resolve().parents[2]
CHILD = """
import dataclasses, json, sys
from pathlib import Path
from fedkd.checkpoints.registry import Registry
from fedkd.checkpoints.transfer import pull, push
verb, reference, root, token, *samples = sys.argv[1:]
try:
    if verb == "push":
        moved = push(Registry(Path(root)), reference, "hf:me/digits", token=token, samples=map(Path, samples))
    else:
        moved = pull(reference, "hf:me/digits", Registry(Path(root)), token=token)
except ValueError as error:
    sys.exit(f"error: {error}")
print(json.dumps(dataclasses.asdict(moved)))
"""

Do = Callable[..., subprocess.CompletedProcess[str]]


@pytest.fixture()
def registry(tmp_path: Path) -> Registry:
    registry, model = Registry(tmp_path / "here"), make_model(tmp_path / "model", size_bytes=200_000)
    registry.publish(model, name="m", licence="mit", base_model="owner/base")
    write_weights(model / "unet/w.safetensors", "second", 200_000)
    registry.publish(model, name="m", parents=["m:v0"], round=1)
    return registry


@pytest.fixture()
def hub() -> Iterator[tuple[HubState, Do]]:
    """The hub's state, and a process of its own that pushes or pulls (the library reads its address on import)."""
    state, base = HubState(), [""]
    with running(create_hub(state, base)) as url:
        base[0] = url
        more = {"HF_ENDPOINT": url, "HF_HUB_OFFLINE": "0", "HF_HUB_DISABLE_XET": "1", "PYTHONPATH": str(ROOT)}

        def do(*words: object) -> subprocess.CompletedProcess[str]:
            given = [sys.executable, "-c", CHILD, *map(str, words)]
            return subprocess.run(
                given, env=os.environ | more, capture_output=True, text=True, timeout=120, check=False
            )

        yield state, do


def test_versions_go_to_the_hub_and_come_back(registry: Registry, hub: tuple[HubState, Do], tmp_path: Path) -> None:
    state, do = hub
    picture = tmp_path / "student-seven.png"
    picture.write_bytes(b"\x89PNG\r\n\x1a\n")
    first = do("push", "m:v0", registry.root, "hf_test", picture)
    assert first.returncode == 0, first.stderr
    assert set(state.revisions) == {"main", "v0"}
    assert set(state.revisions["v0"]) == {
        "README.md", "manifest.json", "model_index.json", "samples/student-seven.png",
        "unet/w.safetensors", "vae/w.safetensors",
    }  # fmt: skip
    card = state.revisions["v0"]["README.md"].decode()
    assert "base_model: owner/base" in card and "license: mit" in card and "samples/student-seven.png" in card
    before = state.uploaded
    second = json.loads(do("push", "m:v1", registry.root, "hf_test").stdout)
    sent = state.uploaded - before
    print(f"\nhub: first version {before} bytes, second {sent} bytes, {second['bytes_saved']} saved")
    assert sent == second["bytes_moved"] < 0.6 * before and second["bytes_saved"] > 200_000
    assert set(state.commits[1]) == {"README.md", "manifest.json", "unet/w.safetensors"}
    again = json.loads(do("push", "m:v1", registry.root, "hf_test").stdout)
    assert again["bytes_moved"] == 0 and len(state.commits) == 2
    for reference in ("m:v0", "m"):
        pulled = do("pull", reference, tmp_path / "other", "hf_test")
        assert pulled.returncode == 0, pulled.stderr
    other = Registry(tmp_path / "other")
    assert other.versions("m") == ["v0", "v1"] and other.alias("m", "latest") == "v1"
    for reference in ("m:v0", "m:v1"):
        unet = "unet/w.safetensors"
        assert (other.resolve(reference) / unet).read_bytes() == (registry.resolve(reference) / unet).read_bytes()
    unknown = do("pull", "m:v7", tmp_path / "other", "hf_test")
    assert unknown.returncode == 1 and "known versions: v0, v1" in unknown.stderr


def test_a_wrong_token_is_one_line(registry: Registry, hub: tuple[HubState, Do]) -> None:
    _, do = hub
    done = do("push", "m", registry.root, "wrong")
    assert done.returncode == 1 and done.stderr.startswith("error: hf:me/digits: the hub")
    assert "token" in done.stderr and done.stderr.count("\n") == 1


def test_a_version_at_the_hub_never_changes(registry: Registry, hub: tuple[HubState, Do], tmp_path: Path) -> None:
    state, do = hub
    assert do("push", "m:v0", registry.root, "hf_test").returncode == 0
    other = Registry(tmp_path / "rival")
    other.publish(make_model(tmp_path / "rival-model", unet="rival"), name="m")
    done = do("push", "m:v0", other.root, "hf_test")
    assert done.returncode == 1 and "already has another m:v0" in done.stderr and len(state.commits) == 1
