"""Flower's simulation of a recipe on this machine: started, watched, and ended with every process it made."""

from __future__ import annotations

import contextlib
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path

from fedkd.recipe import Recipe
from server.processes import BOOTSTRAP, FlowerRun, environment, submit, sweep, unhurried
from server.set_services import simulated_services


@contextlib.contextmanager
def simulation(recipe: Recipe, run: Path, registry_url: str = "", token: str = "") -> Iterator[FlowerRun]:
    """Start the federation of RUN/recipe.yaml under Flower's simulation; no process outlives the block.

    Nodes pull checkpoints from `registry_url` (empty: as the recipe says) with the bearer `token`, which they get
    through their environment and nothing else.
    """
    home = Path(tempfile.mkdtemp(prefix="fedkd-"))
    try:
        env = environment(home, recipe, token)
        (home / "ray_bootstrap_config.yaml").write_text(BOOTSTRAP, encoding="utf-8")
        nodes = recipe.federation.edges + recipe.federation.users
        resources = f"num-supernodes={nodes} client-resources-num-cpus=1"
        if recipe.run.device.startswith("cuda"):
            resources += f" client-resources-num-gpus={1 / nodes:.4f}"
        with simulated_services(recipe, run):
            yield submit(home, env, run, registry_url=registry_url, federation=resources)
    finally:
        with unhurried():
            sweep(home)
            shutil.rmtree(home, ignore_errors=True)
