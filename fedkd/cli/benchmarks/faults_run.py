"""One federation of `fedkd bench faults`: SuperLink and SuperNodes as processes, some killed at a given place."""

from __future__ import annotations

import contextlib
import json
import secrets
import shutil
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from fedkd.recipe import Recipe
    from server.deployment import Deployment
    from server.processes import FlowerRun

CLIENTS = "fedkd.cli.benchmarks.faults_client"
SERVER = "server"
TRIES = 2  # a run that stops more often than the server is killed is a failed one


class DrillError(ValueError):
    """A federation that does not do what it has to."""


def recipe_for(name: str, home: Path, sizes: Mapping[str, int], overrides: list[str]) -> Recipe:
    """The quickstart recipe with so many edges and users; its run is HOME/NAME."""
    from fedkd.recipe import load_recipe

    places = [f"run.out={home}", f"run.name={name}", *(f"federation.{key}={value}" for key, value in sizes.items())]
    return load_recipe("quickstart", [*overrides, *places])


def honest_folders(recipe: Recipe, home: Path, counts: list[int]) -> list[Path]:
    """A folder of captioned pictures for each user, all disjoint.

    The first users hold the recipe's shares of the private digits; what these leave goes to the others in turn.
    """
    from fedkd.data.partition import partition
    from fedkd.data.sources import load_images

    shares = partition(load_images(recipe), recipe)
    places: list[tuple[int, int]] = [(user, 0) for user in range(len(shares))]
    for user in range(len(shares), len(counts)):
        place = user % len(shares)
        places.append((place, counts[place] + counts[user] * (user // len(shares) - 1)))
    folders = [home / f"user-{user}" for user in range(len(counts))]
    for folder, (share, first), count in zip(folders, places, counts, strict=True):
        shutil.rmtree(folder, ignore_errors=True)
        folder.mkdir(parents=True)
        if first + count > len(shares[share]):
            raise ValueError(f"{folder.name} wants pictures {first} to {first + count} of {len(shares[share])}")
        rows = shares[share].select(range(first, first + count))
        for index, row in enumerate(rows):
            row["image"].save(folder / f"{index:03d}.png")
            (folder / f"{index:03d}.txt").write_text(row["caption"], encoding="utf-8")
    return folders


@dataclass
class Drill:
    """A federation over processes: user n has the pictures of `folders[n]` and belongs to edge `edge_of[n]`."""

    recipe: Recipe
    folders: list[Path]
    edge_of: list[int]
    say: Callable[[str], None]

    @property
    def run(self) -> Path:
        """Its folder."""
        from fedkd.recipe import run_dir

        return run_dir(self.recipe)

    def finished(self) -> bool:
        """Whether this very recipe has been gone through already."""
        from fedkd.recipe import to_yaml

        saved = self.run / "recipe.yaml"
        same = saved.is_file() and saved.read_text(encoding="utf-8") == to_yaml(self.recipe)
        return same and (self.run / "seconds.json").is_file()

    def report(self) -> dict[str, Any]:
        """The run's report."""
        from server.summary import compose

        return compose(self.recipe, self.run, self.run / "registry")

    def seconds(self) -> float:
        """How long it took, from the first process to the last phase."""
        return float(json.loads((self.run / "seconds.json").read_text(encoding="utf-8")))

    def go(self, *, faults: Mapping[str, str] = {}, kill_edge: str = "", kill_server: bool = False) -> None:
        """Start all parties, run the federation to its end, and end them.

        `faults` are what nodes do wrong, by name; `kill_edge` is killed in fine-tuning, the server (SuperLink and
        ServerApp) in distillation, after which it is started again and the run resumed. DrillError when the run
        does not end.
        """
        from fedkd.cli.carry_out import registry_for
        from fedkd.recipe import save_recipe
        from server.deployment import deployment

        started, token = time.monotonic(), secrets.token_urlsafe(32)
        self.run.mkdir(parents=True, exist_ok=True)
        save_recipe(self.recipe, self.run / "recipe.yaml")
        name = self.recipe.run.name
        with (
            registry_for(self.recipe, self.run / "registry", token=token) as (url, token),
            deployment(self.recipe, self.run / "deployment", token=token, start_nodes=False) as made,
        ):
            self.start_nodes(made, faults)
            self.say(f"{name}: SuperLink and {len(made.parties) - 1} SuperNodes started")
            kills: list[Callable[[], str]] = [lambda: self.kill_edge(made, kill_edge)] if kill_edge else []
            kills += [lambda: self.kill_server(made)] if kill_server else []
            for attempt in range(TRIES):
                with self.submitted(made, url) as flower:
                    self.follow(flower, kills)
                if self.done():
                    break
                self.say(f"{name}: the run stopped, and is resumed (attempt {attempt + 2})")
        if not self.done():
            from server.processes import last_error

            raise DrillError(f"{name} did not end: {last_error(self.run, self.run / 'flower.log')[0]} (see {self.run})")
        seconds = time.monotonic() - started
        self.say(f"{name}: done in {seconds:.0f} s")
        part = self.run / "seconds.json.part"
        part.write_text(json.dumps(seconds), encoding="utf-8")
        part.replace(self.run / "seconds.json")

    def start_nodes(self, made: Deployment, faults: Mapping[str, str]) -> None:
        """A SuperNode for each edge and user."""
        from fedkd.cli.benchmarks.faults_client import FAULT
        from server.deployment import node_configs

        for name, config in node_configs(self.recipe).items():
            more: dict[str, object] = {}
            if config["role"] == "user":
                user = int(str(config["index"]))
                more = {"data": str(self.folders[user]), "edge": f"edge-{self.edge_of[user]}"}
            made.node(name, {**config, **more}, env={FAULT: faults[name]} if name in faults else {})

    @contextlib.contextmanager
    def submitted(self, made: Deployment, url: str) -> Iterator[FlowerRun]:
        """The run, submitted to the SuperLink with this benchmark's ClientApp."""
        from server.deployment import CONNECTION, connect
        from server.processes import environment, submit

        home = Path(tempfile.mkdtemp(prefix="fedkd-"))
        try:
            env = environment(home, self.recipe, made.token)
            connect(env, made.address, made.ca)
            flower = submit(home, env, self.run, registry_url=url, connection=CONNECTION, clients=CLIENTS)
            try:
                yield flower
            finally:
                if flower.running():
                    flower.process.kill()
                flower.process.wait(30)
        finally:
            shutil.rmtree(home, ignore_errors=True)

    def follow(self, flower: FlowerRun, kills: list[Callable[[], str]]) -> None:
        """Until the run has ended or the server is killed; `kills` are tried one after another until they say who."""
        shown = ""
        while flower.running():
            phase = self.phase()
            if phase != shown:
                self.say(f"{self.recipe.run.name}: {phase}")
                shown = phase
            killed = kills[0]() if kills else ""
            if killed:
                kills.pop(0)
            if killed == SERVER:  # there is nobody left to follow
                return
            time.sleep(0.2)

    def kill_edge(self, made: Deployment, name: str) -> str:
        """Kill an edge's processes when it has begun to learn; its name if that was now, else ''."""
        progress = made.parties[name].home / "fedkd" / "progress.json"
        with contextlib.suppress(OSError, ValueError):
            facts = json.loads(progress.read_text(encoding="utf-8"))
            if facts["phase"] == "finetune" and facts["done"] > 0:
                made.parties[name].kill()
                self.say(f"{self.recipe.run.name}: killed {name} after {facts['done']} of {facts['total']} steps")
                return name
        return ""

    def kill_server(self, made: Deployment) -> str:
        """Kill SuperLink and ServerApp when the student has learned a little, and start the SuperLink again.

        SERVER if that was now, else ''.
        """
        from server.deployment import SUPERLINK, wait_for

        last = self.last_event()
        save_every = self.recipe.distillation.save_every
        if (last.get("event"), last.get("phase")) != ("progress", "distil") or last["done"] <= save_every:
            return ""
        party = made.parties[SUPERLINK]
        party.kill()
        self.say(f"{self.recipe.run.name}: killed the server after {last['done']} of {last['total']} steps")
        party.start()
        wait_for(party, made.address)
        return SERVER

    def done(self) -> bool:
        """Whether the last round is over."""
        from server.state import RunState

        return RunState(self.run).finished(self.recipe.federation.rounds, "redistribute") is not None

    def phase(self) -> str:
        """The phase under way, by the log's last event."""
        last = self.last_event()
        return str(last.get("phase") or str(last.get("event", "starting")).replace("_", " "))

    def last_event(self) -> dict[str, Any]:
        """The last whole line of the run's progress.jsonl."""
        path = self.run / "progress.jsonl"
        for line in reversed(path.read_bytes().splitlines()[-2:] if path.is_file() else []):
            with contextlib.suppress(ValueError):
                return dict(json.loads(line))
        return {}
