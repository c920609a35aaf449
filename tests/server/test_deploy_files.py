"""`deploy/`: what compose and systemd start is what Flower and fedkd take, with the files that credentials.sh makes."""

from __future__ import annotations

import functools
import json
import os
import re
import shlex
import shutil
import subprocess
import sys
import tomllib
from pathlib import Path
from typing import Any

import pytest
import yaml
from flwr.app import Context, RecordDict
from flwr.common.config import parse_config_args

from clients.node import node_of
from fedkd.recipe import load_recipe

DEPLOY = Path(__file__).resolve().parents[2] / "deploy"
COMPOSE: dict[str, Any] = yaml.safe_load((DEPLOY / "compose.yaml").read_text("utf-8"))
NODES = sorted(name for name in COMPOSE["services"] if name != "cloud")
SAYS = f"#!{sys.executable}\nimport json, sys\njson.dump(sys.argv, open(sys.argv[0] + '.json', 'w'))\n"
UNIT_CONFIG = re.compile(r"NODE_CONFIG='(.*)'")


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A copy of deploy/ in which credentials.sh was run."""
    folder = tmp_path_factory.mktemp("deploy") / "deploy"
    shutil.copytree(DEPLOY, folder, ignore=shutil.ignore_patterns("secrets"))
    subprocess.run(["sh", str(folder / "credentials.sh")], check=True, capture_output=True)
    return folder


@functools.cache
def taken(program: str) -> str:
    """What a program of Flower says of its options."""
    path = Path(sys.executable).parent / program
    return subprocess.run([path, "--help"], capture_output=True, text=True, check=True, timeout=120).stdout


def started(service: str, where: Path) -> list[str]:
    """The program and arguments that a container of the service starts, by its own shell and environment."""
    entry = COMPOSE["services"][service]
    words = [word.replace("$$", "$") for word in shlex.split(entry["command"])]
    if words[0] != "sh":
        return words
    stub = where / "flower-supernode"
    stub.write_text(SAYS)
    stub.chmod(0o755)
    path = f"{where}:{os.environ['PATH']}"
    subprocess.run(words, env={"PATH": path, **entry["environment"]}, check=True, timeout=60)
    return ["flower-supernode", *json.loads(stub.with_suffix(".json").read_text())[1:]]


def only_known_options(words: list[str]) -> None:
    options = [word for word in words if word.startswith("--")]
    assert options and not [option for option in options if option not in taken(words[0])]


@pytest.mark.parametrize("service", ["cloud", *NODES])
def test_a_service_gives_flower_options_that_it_has_and_files_that_are_made(
    service: str, made: Path, tmp_path: Path
) -> None:
    words = started(service, tmp_path)
    only_known_options(words)
    mounts = dict(each.split(":")[1::-1] for each in COMPOSE["services"][service]["volumes"])
    assert (made / COMPOSE["services"][service]["env_file"]).is_file()
    for word in words:
        place = next((at for at in mounts if word == at or word.startswith(f"{at}/")), "")
        if place and mounts[place].startswith("."):
            assert (made / (mounts[place] + word.removeprefix(place))).is_file(), word
        elif word.startswith("/"):
            assert place, f"{word} lies in no volume"


def test_nodes_are_the_quickstarts_and_each_is_registered(made: Path, tmp_path: Path) -> None:
    recipe, edges = load_recipe("quickstart"), {}
    for service in NODES:
        words = started(service, tmp_path)
        config = parse_config_args([words[words.index("--node-config") + 1]])
        node = node_of(Context(0, 0, config, RecordDict(), {}), recipe, "")
        assert node.name == service and str(node.folder) == "/var/lib/fedkd"
        edges[service] = node.edge
    assert sum(name.startswith("edge") for name in NODES) == recipe.federation.edges
    assert sum(name.startswith("user") for name in NODES) == recipe.federation.users
    assert set(edges.values()) <= set(NODES)
    register = (made / "secrets/cloud/register.sh").read_text()
    for service in NODES:
        assert f"flwr supernode register /secrets/{service}.pub fedkd --name {service}\n" in register
        assert (made / f"secrets/cloud/{service}.pub").is_file()


@pytest.mark.parametrize("name", [["-verify_hostname", "cloud"], ["-verify_ip", "127.0.0.1"]], ids=["nodes", "own"])
def test_the_certificate_is_for_the_nodes_and_for_the_superlinks_own_processes(made: Path, name: list[str]) -> None:
    where = made / "secrets/cloud"
    command = [
        "openssl",
        "verify",
        "-x509_strict",
        "-CAfile",
        str(where / "ca.crt"),
        *name,
        str(where / "superlink.crt"),
    ]
    assert subprocess.run(command, capture_output=True).returncode == 0


def test_keys_are_nobody_elses_and_are_not_made_twice(made: Path) -> None:
    keys = [*(made / "secrets/nodes").iterdir(), made / "secrets/cloud/superlink.key", made / "secrets/token.env"]
    assert len(keys) == len(NODES) + 2 and not [key for key in keys if key.stat().st_mode & 0o077]
    before = {key: key.read_bytes() for key in keys}
    again = subprocess.run(["sh", str(made / "credentials.sh")], capture_output=True, text=True)
    assert again.returncode == 2 and "exists already" in again.stderr
    assert before == {key: key.read_bytes() for key in keys}


@pytest.mark.parametrize("unit", sorted(path.name for path in (DEPLOY / "systemd").iterdir()))
def test_a_unit_gives_flower_options_that_it_has(unit: str) -> None:
    text = (DEPLOY / "systemd" / unit).read_text("utf-8")
    command = shlex.split(text.replace("\\\n", " ").split("ExecStart=")[1].split("\n")[0])
    only_known_options([Path(command[0]).name, *command[1:]])
    for config in UNIT_CONFIG.findall(text):
        node = node_of(Context(0, 0, parse_config_args([config]), RecordDict(), {}), load_recipe("quickstart"), "")
        assert node.role in ("edge", "user") and node.edge == "edge-0"


def test_the_image_takes_torch_from_fedkds_own_range() -> None:
    project = tomllib.loads((DEPLOY.parent / "pyproject.toml").read_text("utf-8"))["project"]
    wanted = next(each for each in project["dependencies"] if each.startswith("torch>"))
    assert f"'{wanted}' --index-url" in (DEPLOY / "Dockerfile").read_text("utf-8")
