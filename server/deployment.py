"""A deployment of Flower on this machine: a SuperLink and SuperNodes as processes, with TLS and the nodes' keys.

What `docs/deploy.md` does by hand on many machines. Each party has a folder, an environment and, if asked for, a
network namespace of its own; the folder stays, so that a party started again is the same node.
"""

from __future__ import annotations

import contextlib
import json
import re
import shutil
import socket
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path

from fedkd.recipe import Recipe
from server.credentials import CA, CERTIFICATE, KEY, make_certificates, make_node_key
from server.namespaces import Bridge, bridge
from server.processes import FLWR, environment, family, free_ports, sweep, unhurried
from server.set_services import set_services

SUPERLINK, CONNECTION = "superlink", "fedkd"
START_S = 90.0
NODE_ID = re.compile(r'"node-id": "?(\d+)')  # in what `flwr supernode register` prints


class DeploymentError(ValueError):
    """A party of a deployment that does not come up."""


@dataclass
class Party:
    """A process with what it starts: `superlink`, or a SuperNode by its name."""

    name: str
    home: Path
    command: list[str]
    env: dict[str, str]
    log: Path
    process: subprocess.Popen[bytes] | None = None

    def start(self) -> None:
        """Start it, or start it again with the same folder, key and configuration."""
        with self.log.open("ab") as stream:
            self.process = subprocess.Popen(
                self.command,
                env=self.env,
                cwd=self.home,
                stdin=subprocess.DEVNULL,
                stdout=stream,
                stderr=stream,
                start_new_session=True,
            )

    def kill(self) -> None:
        """End it and all that it started with SIGKILL, as a power cut does."""
        while found := family(self.home):
            for process in found:
                with contextlib.suppress(Exception):
                    process.kill()
            time.sleep(0.05)
        if self.process is not None:
            self.process.wait()

    def running(self) -> bool:
        """Whether its first process lives."""
        return self.process is not None and self.process.poll() is None

    def last_words(self) -> str:
        """The last line of its log."""
        lines = self.log.read_text(encoding="utf-8", errors="replace").split("\n") if self.log.is_file() else []
        return next((line.strip()[:300] for line in reversed(lines) if line.strip()), "it said nothing")


@dataclass
class Deployment:
    """Its parties by name, where the SuperLink is, and how `flwr` reaches it."""

    recipe: Recipe
    folder: Path
    address: str
    this_host: str  # where nodes reach this machine
    env: dict[str, str]  # for `flwr`, whose config.toml names the SuperLink CONNECTION
    token: str
    hosts: Bridge | None = None
    parties: dict[str, Party] = field(default_factory=dict)
    ids: dict[str, str] = field(default_factory=dict)  # Flower's of the registered nodes

    @property
    def ca(self) -> Path:
        """The certificate of the authority that nodes trust."""
        return self.folder / "certificates" / CA

    def register(self, name: str, public: Path) -> str:
        """Make the SuperLink know a node's key; the id that it gave. DeploymentError when it does not take the key."""
        command = [*FLWR, "supernode", "register", str(public), CONNECTION, "--name", name, "--format", "json"]
        done = subprocess.run(command, env=self.env, cwd=self.folder, capture_output=True, text=True, timeout=120)
        found = NODE_ID.search(done.stdout)
        if done.returncode or found is None:
            raise DeploymentError(f"the SuperLink did not register '{name}': {(done.stderr or done.stdout).strip()}")
        return found.group(1)

    def node(
        self,
        name: str,
        config: Mapping[str, object],
        *,
        env: Mapping[str, str] | None = None,
        ca: Path | None = None,
        registered: bool = True,
    ) -> Party:
        """Make and start a SuperNode of the given node-config; `env` adds to its environment.

        `ca` and `registered` are there to show what happens to a node with another authority's certificate or with
        a key that nobody registered: it stays outside.
        """
        private, public = make_node_key(self.folder / "keys", name)
        if registered:
            self.ids[name] = self.register(name, public)
        inside: list[str] = []
        if self.hosts is not None:
            self.hosts.add(name)
            inside = self.hosts.inside(name)
        party = self._party(name, inside, ca=ca or self.ca, private=private, config=config)
        party.env |= dict(env or {})
        party.start()
        return party

    def _party(self, name: str, inside: list[str], *, ca: Path, private: Path, config: Mapping[str, object]) -> Party:
        home = self.folder / "nodes" / name
        home.mkdir(parents=True, exist_ok=True)
        port = "9094" if inside else free_ports(1)[0]
        command = [*inside, program("flower-supernode"), "--superlink", self.address, "--root-certificates", str(ca)]
        command += ["--auth-supernode-private-key", str(private), "--host", "127.0.0.1", "--port", port]
        command += ["--node-config", toml({"cache": str(home / "fedkd"), **config})]
        log = self.folder / "logs" / f"{name}.log"
        made = Party(name, home, command, environment(home, self.recipe, self.token), log)
        self.parties[name] = made
        return made

    def close(self) -> None:
        """End every party, the SuperLink last."""
        for name in sorted(self.parties, key=lambda name: name == SUPERLINK):
            sweep(self.parties[name].home)


@contextlib.contextmanager
def deployment(
    recipe: Recipe, folder: Path, *, netns: bool = False, token: str = "", start_nodes: bool = True
) -> Iterator[Deployment]:
    """A SuperLink with TLS that only knows registered nodes, and a SuperNode for each edge and user of the recipe.

    Keys, logs and the nodes' caches lie below `folder`. With `netns` each has a network namespace of its own
    (NamespaceError when that cannot be); `token` is what nodes show to the registry. No process and no namespace
    outlives the block. DeploymentError with the last line of its log when a party does not come up.
    """
    with contextlib.ExitStack() as stack:
        hosts = stack.enter_context(bridge()) if netns else None
        made = superlink(recipe, folder, hosts, token)
        stack.callback(closed, made)
        if start_nodes:
            own = stack.enter_context(set_services(recipe, lambda name: folder / "nodes" / name, made.this_host))
            for name, config in node_configs(recipe).items():
                made.node(name, {**config, **own.get(name, {})})
        yield made


def closed(made: Deployment) -> None:
    """End all of it, whatever is pressed meanwhile."""
    with unhurried():
        made.close()


def superlink(recipe: Recipe, folder: Path, hosts: Bridge | None, token: str = "") -> Deployment:
    """Start a SuperLink below `folder` and wait until it answers; it takes no node that is not registered."""
    host, this_host, inside = "127.0.0.1", "127.0.0.1", []
    if hosts is not None:
        host, this_host = hosts.add(SUPERLINK), hosts.address
        inside = hosts.inside(SUPERLINK)
    (folder / "logs").mkdir(parents=True, exist_ok=True)
    home, flwr = folder / SUPERLINK, folder / "flwr"
    for each in (home, flwr):
        each.mkdir(exist_ok=True)
    certificates = folder / "certificates"
    make_certificates(certificates, [host])
    address = f"{host}:{free_ports(1)[0]}"
    command = [*inside, program("flower-superlink"), "--host", host, "--port", address.rpartition(":")[2]]
    for option, name in (("--ssl-ca-certfile", CA), ("--ssl-certfile", CERTIFICATE), ("--ssl-keyfile", KEY)):
        command += [option, str(certificates / name)]
    command += ["--enable-supernode-auth", "--database", str(home / "superlink.db")]
    made = Deployment(recipe, folder, address, this_host, environment(flwr, recipe), token, hosts)
    connect(made.env, address, certificates / CA)
    party = Party(SUPERLINK, home, command, environment(home, recipe), folder / "logs" / f"{SUPERLINK}.log")
    made.parties[SUPERLINK] = party
    party.start()
    try:
        wait_for(party, address)
    except BaseException:
        closed(made)
        raise
    return made


def wait_for(party: Party, address: str) -> None:
    """Wait until the SuperLink takes connections; DeploymentError with its last words when it does not."""
    host, _, port = address.rpartition(":")
    deadline = time.monotonic() + START_S
    while time.monotonic() < deadline and party.running():
        with contextlib.suppress(OSError), socket.create_connection((host, int(port)), timeout=1.0):
            return
        time.sleep(0.2)
    raise DeploymentError(f"the SuperLink did not come up at {address}: {party.last_words()} (see {party.log})")


def connect(env: Mapping[str, str], address: str, ca: Path | None) -> None:
    """Write the config.toml by which `flwr` finds the SuperLink as CONNECTION; without `ca` it is not encrypted."""
    home = Path(env["FLWR_HOME"])
    home.mkdir(parents=True, exist_ok=True)
    trust = f"root-certificates = {json.dumps(str(ca))}" if ca is not None else "insecure = true"
    text = f'[superlink]\ndefault = "{CONNECTION}"\n\n[superlink.{CONNECTION}]\naddress = "{address}"\n{trust}\n'
    (home / "config.toml").write_text(text, encoding="utf-8")


def node_configs(recipe: Recipe) -> dict[str, dict[str, object]]:
    """The node-config of each edge and user of a recipe, by name; users belong to the recipe's edges in equal shares.

    They are the names and places that `fedkd simulate` gives them, so that both make the same student.
    """
    found: dict[str, dict[str, object]] = {}
    for role, count in (("edge", recipe.federation.edges), ("user", recipe.federation.users)):
        for index in range(count):
            found[f"{role}-{index}"] = {"role": role, "name": f"{role}-{index}", "index": index}
    return found


def toml(config: Mapping[str, object]) -> str:
    """A node-config as the command line has it: key="text" key=1."""
    return " ".join(f"{key}={json.dumps(value)}" for key, value in config.items())


def program(name: str) -> str:
    """The path of one of Flower's programs beside this Python; DeploymentError when it is not there."""
    path = Path(sys.executable).parent / name
    found = str(path) if path.is_file() else shutil.which(name)
    if found is None:
        raise DeploymentError(f"the program {name} was not found; install fedkd with Flower: pip install fedkd")
    return found
