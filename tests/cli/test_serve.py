"""`fedkd serve` pulls from the cloud, follows its newest version, asks for tokens, and names mistakes."""

from __future__ import annotations

import re
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import httpx
import pytest
from safetensors.torch import load_file, save_file
from typer.testing import CliRunner

from fedkd.checkpoints.registry import Registry
from fedkd.cli.main import app
from fedkd.serving.registry_http import create_registry_app
from tests.serving.running import running, until


def test_the_cloud_is_served_and_followed(tmp_path: Path, tiny_folder: Path) -> None:
    registry = Registry(tmp_path / "registry")
    registry.publish(tiny_folder, name="tiny-sd")
    tokens = tmp_path / "tokens.yaml"
    tokens.write_text("tokens: [{name: ann, token: a}]")
    with running(create_registry_app(registry.root)) as cloud:
        command = [
            *(sys.executable, "-m", "fedkd.cli.main", "serve", "quickstart", "serving.refresh_s=0.1"),
            *(f"serving.cache_dir={tmp_path / 'cache'}", "--from", str(cloud.base_url)),
            *("--tokens", str(tokens), "--port", "0", "--threads", "1"),
        ]
        with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as process:
            assert process.stdout is not None and process.stderr is not None
            line = process.stdout.readline()
            said = re.search(r"^serving tiny-sd:v0 from (\S+) at (http://\S+) \(Ctrl-C ends\)$", line)
            assert said, line + process.stderr.read()
            assert Path(said[1]).is_relative_to(tmp_path / "cache")
            headers = {"Authorization": "Bearer a"}
            with httpx.Client(base_url=said[2], trust_env=False, timeout=30) as http:
                assert until(lambda: http.get("/readyz").status_code == 200)
                assert http.get("/v1/models").status_code == 401
                assert http.get("/v1/model", headers=headers).json()["version"] == "v0"
                changed = tmp_path / "changed"
                shutil.copytree(tiny_folder, changed)
                path = changed / "unet" / "diffusion_pytorch_model.safetensors"
                save_file({key: value * 0.9 for key, value in load_file(path).items()}, path)
                registry.publish(changed, name="tiny-sd")
                assert until(lambda: http.get("/v1/model", headers=headers).json()["version"] == "v1")
            process.send_signal(signal.SIGINT)
            assert process.wait(30) == 130
            assert "the edge has stopped" in process.stderr.read()


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (["--tokens", "none.yaml"], "tokens=none.yaml cannot be read"),
        (["--checkpoint", "tiny-sd", "--checkpoint", "tiny-sd"], "two models are called 'tiny-sd'; give one as NAME="),
        (["--checkpoint", "no/such/folder"], "no/such/folder"),
        (["--from", "http://127.0.0.1:1"], "http://127.0.0.1:1"),
        (["serving.refresh_s=-1"], "serving.refresh_s=-1.0 is out of range"),
        (["model.scheduler=None"], "scheduler"),
        (["--host", "256.1.1.1"], "cannot listen on 256.1.1.1"),
        (["--peer", "nowhere"], "--peer=nowhere is no edge's address; give http://HOST:PORT"),
        (
            ["--peer", "http://127.0.0.1:9", "--dispatch", "socail"],
            "dispatch='socail' is not known; did you mean 'social'",
        ),
        (["--peer", "http://127.0.0.1:9", "--token", "t"], "peer_token is empty"),
        (["serving.forward=guess"], "serving.forward='guess' is not allowed"),
    ],
)
def test_mistakes_are_one_line(tmp_path: Path, options: list[str], said: str) -> None:
    ran = CliRunner().invoke(app, ["serve", "quickstart", f"run.out={tmp_path}", "--port", "0", *options])
    assert ran.exit_code == 2, ran.output
    assert ran.stderr.startswith("error: ") and said in ran.stderr


def test_without_a_checkpoint_the_newest_that_the_recipe_published_is_served(tmp_path: Path, tiny_folder: Path) -> None:
    from fedkd.checkpoints.signing import TrustPolicy
    from fedkd.cli.serve import _models
    from fedkd.recipe import load_recipe
    from fedkd.serving.sources import FolderSource, RegistrySource

    recipe = load_recipe("quickstart", [f"run.registry={tmp_path / 'registry'}"])
    assert _models([""], recipe, "", "") == {"tiny-sd": FolderSource("tiny-sd")}  # nothing was published yet
    registry = Registry(tmp_path / "registry")
    registry.publish(tiny_folder, name="tiny-sd")
    source = _models([""], recipe, "", "")["tiny-sd"]
    assert isinstance(source, RegistrySource)
    assert source.moves and source.policy == TrustPolicy(public_keys=[])
    assert source.bring().folder == registry.folder("tiny-sd:v0")
    assert _models(["tiny-sd"], recipe, "", "") == {"tiny-sd": FolderSource("tiny-sd")}  # the shipped one, by its name
    pinned = _models(["tiny-sd:v0"], recipe, "", "")["tiny-sd"]
    assert isinstance(pinned, RegistrySource) and not pinned.moves
