"""`fedkd bench scale`: what a round costs the cloud with more users, more edges and more synthetic pictures."""

from __future__ import annotations

import hashlib
import json
import math
import os
import tempfile
from collections.abc import Callable, Sequence
from dataclasses import asdict
from pathlib import Path

from fedkd.cli.benchmarks.request import Request
from fedkd.cli.benchmarks.result import Result, Table, at_most
from fedkd.cli.benchmarks.scale_plan import tables
from fedkd.cli.benchmarks.scale_run import CHEAP, Cost, Size, measure

BY_PICTURES = (Size(10, 2, 1), Size(10, 2, 10), Size(10, 2, 100))
BY_USERS = (Size(10, 2, 100), Size(100, 2, 10), Size(1000, 2, 1))  # the same pictures in all
BY_EDGES = (Size(100, 2, 10), Size(100, 8, 10), Size(100, 32, 10))
QUICK_PICTURES = (Size(4, 2, 1), Size(4, 2, 40))
QUICK_USERS = (Size(4, 2, 40), Size(16, 2, 10))
QUICK_EDGES = (Size(16, 2, 10), Size(16, 4, 10))
COLUMNS = ["cloud s", "asking s", "working s", "up MB", "down MB", "registry MB", "peak MB", "disk MB", "round s"]
LINEAR, SAME, MEMORY = 1.05, 1.25, 1.2  # bounds; the first leaves 0.05 to chance


def run(request: Request) -> Result:
    """Seven federations of one round each (three when quick); what is measured is kept under `out`/scale.

    Cloud seconds are processor seconds of the server's own thread: what else the machine does is not in them.
    """
    pictures, users, edges = (
        (QUICK_PICTURES, QUICK_USERS, QUICK_EDGES) if request.quick else (BY_PICTURES, BY_USERS, BY_EDGES)
    )
    sizes = list(dict.fromkeys((*pictures, *users, *edges)))
    costs = {size: kept(size, request) for size in sizes}
    result = Result(request.name, request.command, [0], [])
    result.tables.append(Table("A round, as the cloud sees it", COLUMNS, _rows(costs), plain=True, digits=2))
    result.tables += tables(list(costs.values()))
    result.tables += [
        _chart("Cloud seconds by pictures", "synthetic pictures", {str(s.total): costs[s] for s in pictures}),
        _chart("Cloud seconds by users, the same pictures", "users", {str(s.users): costs[s] for s in users}),
        _chart("Cloud seconds by edges, the same users", "edges", {str(s.edges): costs[s] for s in edges}),
    ]
    few, many = costs[users[0]], costs[users[-1]]
    least, most = costs[pictures[0]], costs[users[-1]]
    growth = steepest([s.total for s in pictures], [costs[s].cloud_s for s in pictures])
    talk = steepest([costs[s].messages for s in users], [costs[s].asking_s for s in users])
    result.shows += [
        at_most("cloud seconds by synthetic pictures, steepest exponent of the growth", growth, LINEAR),
        at_most(
            f"distil and publish with {many.size.users} users over {few.size.users}, the same pictures",
            many.working_s / few.working_s,
            SAME,
        ),
        at_most("asking nodes by messages, steepest exponent of the growth", talk, LINEAR),
        at_most(
            f"the server's memory with {most.size.users} users over {least.size.users}",
            most.peak_bytes / least.peak_bytes,
            MEMORY,
        ),
    ]
    result.notes += _notes(costs, edges)
    return result


def kept(size: Size, request: Request) -> Cost:
    """The cost of a size: measured, or as an earlier call of this benchmark with the same recipe measured it."""
    path = place_of(size, request)
    if path.is_file():
        facts = json.loads(path.read_text(encoding="utf-8"))
        return Cost(**{**facts, "size": Size(**facts["size"])})
    request.say(f"{size.name} …")
    cost = measure(size, Path(tempfile.mkdtemp(prefix="fedkd-scale-")), request.overrides, request.say)
    path.parent.mkdir(parents=True, exist_ok=True)
    part = path.with_suffix(".part")
    part.write_text(json.dumps(asdict(cost)), encoding="utf-8")
    os.replace(part, path)
    return cost


def place_of(size: Size, request: Request) -> Path:
    """Where the cost of a size is kept: one place for each recipe."""
    identity = json.dumps([asdict(size), CHEAP, request.overrides])
    return request.out / "scale" / f"{hashlib.sha256(identity.encode()).hexdigest()[:12]}.json"


def exponent(sizes: Sequence[float], values: Sequence[float]) -> float:
    """The slope of log(value) over log(size), by least squares: 1 is linear growth, 0 none."""
    import numpy as np

    return float(np.polyfit(np.log(sizes), np.log(values), 1)[0])


def steepest(sizes: Sequence[float], values: Sequence[float]) -> float:
    """The largest exponent between neighbouring sizes: over all of them a fixed cost would hide growth at the end."""
    return max(exponent(sizes[at : at + 2], values[at : at + 2]) for at in range(len(sizes) - 1))


def _rows(costs: dict[Size, Cost]) -> dict[str, dict[str, list[float]]]:
    def row(cost: Cost) -> dict[str, list[float]]:
        sent = (cost.up, cost.down, cost.registry, cost.peak_bytes, cost.disk_bytes)
        values = (cost.cloud_s, cost.asking_s, cost.working_s, *(size / 1e6 for size in sent), cost.round_s)
        return {column: [value] for column, value in zip(COLUMNS, values, strict=True)}

    return {size.name: row(cost) for size, cost in costs.items()}


def _chart(title: str, across: str, costs: dict[str, Cost]) -> Table:
    parts: dict[str, Callable[[Cost], float]] = {
        "all": lambda cost: cost.cloud_s,
        "asking nodes": lambda cost: cost.asking_s,
        "distil and publish": lambda cost: cost.working_s,
    }
    rows = {name: {key: [part(cost)] for key, cost in costs.items()} for name, part in parts.items()}
    return Table(title, list(costs), rows, plain=True, digits=2, chart="lines", across=across)


def _notes(costs: dict[Size, Cost], edges: Sequence[Size]) -> list[str]:
    memory = exponent([size.users for size in costs], [cost.peak_bytes for cost in costs.values()])
    by_edges = exponent([s.edges for s in edges], [costs[s].cloud_s for s in edges])
    slowest = max(costs.values(), key=lambda cost: cost.wall_s)
    kept_s = math.fsum(cost.wall_s for cost in costs.values())
    return [
        f"cloud seconds by edges, exponent of the growth: {by_edges:.2f}",
        f"memory by users, exponent of the growth: {memory:.3f} (the process also carries Flower's messages)",
        f"{len(costs)} federations took {kept_s / 60:.1f} minutes; {slowest.size.name}: {slowest.wall_s / 60:.1f}",
    ]
