"""The edges' services for sets in a federation on one machine, which has nobody who starts them by hand."""

from __future__ import annotations

import contextlib
import json
import os
import secrets
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from fedkd.recipe import Recipe

CONFIG = "config.json"  # where a simulated node finds its own configuration (clients.node)
Configs = dict[str, dict[str, Any]]


@contextlib.contextmanager
def set_services(recipe: Recipe, place: Callable[[str], Path], host: str = "127.0.0.1") -> Iterator[Configs]:
    """Serve each edge's sets at `host` while the block lasts; yields what the nodes' configurations need, by name.

    `place(name)` is a node's folder: an edge's spool lies there, and a user's token, which is new every time. {} when
    sets go through the cloud.
    """
    if recipe.federation.sets_route != "edge":
        yield {}
        return
    from fedkd.serving.background import in_background
    from fedkd.serving.sets_http import create_sets_app, mounted
    from fedkd.serving.tokens import book_of

    edges, users = recipe.federation.edges, recipe.federation.users
    tokens = {f"user-{index}": secrets.token_urlsafe(32) for index in range(users)}
    home = {f"user-{index}": f"edge-{index * edges // users}" for index in range(users)}
    spools = {f"edge-{index}": place(f"edge-{index}") / "spool" for index in range(edges)}
    limit = int(recipe.federation.max_message_mb * 2**20)
    apps = {
        edge: create_sets_app(spool, book_of({user: tokens[user] for user in tokens if home[user] == edge}), limit)
        for edge, spool in spools.items()
    }
    with in_background(mounted(apps), host) as url:
        configs: Configs = {edge: {"spool": str(spool)} for edge, spool in spools.items()}
        for user, edge in home.items():
            path = place(user) / "edge-token"
            _write_secret(path, tokens[user])
            configs[user] = {"edge-url": f"{url}/{edge}", "edge-token-file": str(path)}
        yield configs


def _write_secret(path: Path, token: str) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.unlink(missing_ok=True)
    with os.fdopen(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "w") as stream:
        stream.write(token)


@contextlib.contextmanager
def simulated_services(recipe: Recipe, run: Path) -> Iterator[Configs]:
    """`set_services` for the nodes of a simulation, each of which finds its part in RUN/nodes/NAME/config.json."""
    with set_services(recipe, lambda name: run / "nodes" / name) as configs:
        for name, config in configs.items():
            folder = run / "nodes" / name
            folder.mkdir(parents=True, exist_ok=True)
            part = folder / f"{CONFIG}.part"
            part.write_text(json.dumps(config), encoding="utf-8")
            os.replace(part, folder / CONFIG)
        yield configs
