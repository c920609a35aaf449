"""What the environment and a decision take, in CPU time of one core."""

from __future__ import annotations

import time
from collections.abc import Callable
from functools import partial
from typing import Any

from fedkd.cli.benchmarks.request import Request
from fedkd.cli.benchmarks.result import Rows, Shown, Table, at_most

EPISODES = 30
ENVIRONMENT_MS, DECISION_MS = 9.0, 1.0
TASKS, EDGES = 50, 20
LOADS = {"light (0.3)": 0.3, "overloaded (1.3)": 1.3}


def tables_and_shows(request: Request) -> tuple[list[Table], list[Shown]]:
    """ms an episode of the environment under given decisions, and ms a decision for 50 tasks on 20 edges."""
    episode_ms = _environment_ms(3 if request.quick else 10)
    rows: Rows = {}
    for label, load in LOADS.items():
        for name, ms in _decisions_ms(load, 20 if request.quick else 200).items():
            rows.setdefault(name, {})[label] = [ms]
    slowest = max(rows["social"][label][0] for label in LOADS)
    title = f"ms of CPU for one decision of {TASKS} tasks on {EDGES} edges, from requests to their edges (best of many)"
    environment: Rows = {name: {"ms an episode": [ms]} for name, ms in episode_ms.items()}
    return [
        Table(
            f"The environment, {EPISODES} episodes a batch, a core",
            ["ms an episode"],
            environment,
            plain=True,
            digits=2,
        ),
        Table(title, list(LOADS), rows, plain=True, digits=2),
    ], [
        at_most("environment: ms of CPU an episode of 59 slots, decisions given", episode_ms["run"], ENVIRONMENT_MS),
        at_most(f"social: ms of CPU a decision for {TASKS} tasks and {EDGES} edges", slowest, DECISION_MS),
    ]


def _environment_ms(repeats: int) -> dict[str, float]:
    import numpy as np

    from fedkd.planning.cluster import TRAINING_SEEDS, ClusterSetting, draw
    from fedkd.planning.learning.edge_cluster import EdgeCluster

    seeds = TRAINING_SEEDS[:EPISODES]
    drawn_s, arrivals = _timed(lambda: draw(ClusterSetting(), seeds), 2)
    world = EdgeCluster(arrivals)
    edge = np.random.default_rng(0).integers(0, world.setting.edges, world.slot.mask.shape)

    def episode() -> None:
        world.reset()
        while not world.over:
            world.step(edge)

    run_s, _ = _timed(episode, repeats)
    return {"run": 1e3 * run_s / EPISODES, "draw the arrivals": 1e3 * drawn_s / EPISODES}


def _decisions_ms(load: float, repeats: int) -> dict[str, float]:
    import numpy as np

    from fedkd.planning.dispatch import SCHEDULERS, DispatchRequest, DispatchSystem, EdgeState, decide

    rng = np.random.default_rng(1)
    edges = tuple(
        EdgeState(f"edge {place}", float(speed), backlog=float(speed * wait))
        for place, (speed, wait) in enumerate(
            zip(rng.integers(10, 51, EDGES), 2 * load * rng.random(EDGES), strict=True)
        )
    )
    requests = [DispatchRequest(float(work)) for work in rng.uniform(0.1, 4.3, TASKS)]
    recent = tuple(float(work) for work in rng.uniform(0.1, 4.3, 256))
    found = {}
    for name in SCHEDULERS:
        system = DispatchSystem(edges, edges[0].name, name, load=load, recent=recent)
        found[name] = 1e3 * _timed(partial(decide, requests, system), repeats)[0]
    return found


def _timed(work: Callable[[], Any], repeats: int) -> tuple[float, Any]:
    """(least seconds of CPU, as others on the machine only add to it; what it came to), after one run to warm up."""
    found, times = work(), []
    for _ in range(repeats):
        start = time.process_time()
        found = work()
        times.append(time.process_time() - start)
    return min(times), found
