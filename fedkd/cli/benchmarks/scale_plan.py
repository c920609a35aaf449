"""A plan for many more users than one machine can play, from what small federations cost."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from fedkd.cli.benchmarks.result import Table
from fedkd.cli.benchmarks.scale_run import Cost

USERS = (1_000, 10_000, 100_000, 1_000_000)  # that take part in one round
USERS_AN_EDGE = 1_000
PICTURES_A_USER = 10
COLUMNS = ["edges", "cloud h", "up GB", "down GB", "registry GB", "disk GB", "Mbit/s for a day"]
PARTS: dict[str, Callable[[Cost], float]] = {
    "cloud seconds": lambda cost: cost.cloud_s,
    "bytes up": lambda cost: cost.up,
    "bytes down": lambda cost: cost.down,
    "registry bytes": lambda cost: cost.registry,
    "disk bytes": lambda cost: cost.disk_bytes,
}


@dataclass(frozen=True)
class Law:
    """value = fixed + user · users + edge · edges + picture · synthetic pictures."""

    fixed: float
    user: float
    edge: float
    picture: float

    def of(self, users: float, edges: float, pictures: float) -> float:
        """The value for a federation."""
        return self.fixed + self.user * users + self.edge * edges + self.picture * pictures


def law_of(costs: list[Cost], value: Callable[[Cost], float]) -> Law:
    """The law that fits the measured values best, each by its relative error; no coefficient is below 0."""
    import numpy as np
    from scipy.optimize import nnls

    sizes = [cost.size for cost in costs]
    rows = np.array([[1.0, size.users, size.edges, size.total] for size in sizes])
    values = np.array([value(cost) for cost in costs], dtype=float)
    found, _ = nnls(rows / values[:, None], np.ones(len(values)))
    return Law(*(float(coefficient) for coefficient in found))


def tables(costs: list[Cost]) -> list[Table]:
    """The coefficients of every law, and what rounds of up to 10^6 users would cost by them."""
    laws = {name: law_of(costs, value) for name, value in PARTS.items()}
    names = ["fixed", "a user", "an edge", "a picture"]
    rows = {
        name: dict(zip(names, ([law.fixed], [law.user], [law.edge], [law.picture]), strict=True))
        for name, law in laws.items()
    }
    planned = {f"{users:,} users": _planned(laws, users) for users in USERS}
    title = f"A round by these laws, {USERS_AN_EDGE:,} users an edge, {PICTURES_A_USER} pictures a user"
    return [
        Table("Laws: value = fixed + users + edges + pictures", names, rows, plain=True, digits=4),
        Table(title, COLUMNS, planned, plain=True, digits=2),
    ]


def _planned(laws: dict[str, Law], users: int) -> dict[str, list[float]]:
    edges, pictures = users / USERS_AN_EDGE, users * PICTURES_A_USER
    found = {name: law.of(users, edges, pictures) for name, law in laws.items()}
    bits = 8 * (found["bytes up"] + found["bytes down"] + found["registry bytes"])
    values = (
        edges,
        found["cloud seconds"] / 3600,
        found["bytes up"] / 1e9,
        found["bytes down"] / 1e9,
        found["registry bytes"] / 1e9,
        found["disk bytes"] / 1e9,
        bits / 86_400 / 1e6,
    )
    return {column: [value] for column, value in zip(COLUMNS, values, strict=True)}
