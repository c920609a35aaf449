"""Where the setting is another one: sizes, arrivals, failing edges, missing models, horizons, other clusters."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

from fedkd.cli.benchmarks.dispatch_figures import ORACLE, SLOT_START, SOCIAL, SOCIAL_MEAN, held_out, oracle, outcomes
from fedkd.cli.benchmarks.request import Request
from fedkd.cli.benchmarks.result import Rows, Shown, Table

if TYPE_CHECKING:
    from fedkd.planning.cluster import ClusterSetting
    from fedkd.planning.dispatch_episodes import Outcome

EPISODES = 10
SHOWN = ("capacity-proportional", "least-own-work", "jsq", "power-of-two", "sita", SOCIAL, SOCIAL_MEAN)


def tables_and_shows(request: Request) -> tuple[list[Table], list[Shown]]:
    """Means, and p99, of all settings; no bound was promised here."""
    means: Rows = {}
    tails: Rows = {}
    for name, setting in settings().items():
        request.say(f"robustness: {name}")
        arrivals = held_out(setting, request, EPISODES)
        found: dict[str, Outcome] = outcomes(arrivals, SLOT_START, SHOWN) | {ORACLE: oracle(arrivals)}
        label = f"{name} (load {arrivals.cluster.load:.2f})"
        means[label] = {each: list(outcome.mean_s) for each, outcome in found.items()}
        tails[label] = {each: list(outcome.percentile_s(99)) for each, outcome in found.items()}
    columns = [*SHOWN, ORACLE]
    return [
        Table("Mean delay (s) in other settings, slot-start information", columns, means, plain=True, digits=2),
        Table("p99 of delay (s) in other settings, slot-start information", columns, tails, plain=True, digits=2),
    ], []


def notes(request: Request) -> list[str]:
    """What the figures do not say of themselves."""
    return [
        "robustness: with failures every task is served in the end; one sent to an edge that stops waits for it. With "
        "missing models an edge first fetches what it lacks, each time. Nothing was tuned for these settings"
    ]


def settings() -> dict[str, ClusterSetting]:
    """The default and what differs from it, by name."""
    from fedkd.planning.cluster import ClusterSetting

    random = ClusterSetting(variant="random")
    light = replace(random, tasks=25)
    return {
        "default, random work": random,
        "heavy-tailed sizes": replace(random, sizes="heavy"),
        "bursty arrivals": replace(random, arrivals="bursty"),
        "diurnal arrivals": replace(random, arrivals="diurnal"),
        "bursty, N = 25": replace(light, arrivals="bursty"),
        "heavy-tailed, N = 25": replace(light, sizes="heavy"),
        "failing edges, N = 25": replace(light, failure=0.005),
        "8 models, 3 held, N = 25": replace(light, models=8, held=3, miss_s=0.2),
        "half a minute": replace(random, slots=30),
        "two minutes": replace(random, slots=120),
        **{f"cluster {seed}": replace(random, cluster_seed=seed) for seed in (1, 2, 3)},
    }
