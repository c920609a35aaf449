"""The rules' part of `fedkd bench dispatch`: both variants, both kinds of information, paired held-out episodes."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

from fedkd.cli.benchmarks.dispatch_figures import (
    IN_SLOT,
    ORACLE,
    SEEING,
    SLOT_START,
    SOCIAL,
    SOCIAL_MEAN,
    held_out,
    oracle,
    outcomes,
)
from fedkd.cli.benchmarks.request import Request
from fedkd.cli.benchmarks.result import Rows, Shown, Table, at_most

if TYPE_CHECKING:
    from fedkd.planning.dispatch_episodes import Outcome

EPISODES = 30
COLUMNS = ["mean", "standard error", "p50", "p95", "p99", "mean / oracle", "p99 / oracle"]
MEAN_BOUND, TAIL_BOUND, MEAN_ONLY_BOUND = 0.70, 1.25, 0.62
HINDSIGHT, BOUND = "hindsight search", "lower bound (pooled, shortest remaining)"


def tables_and_shows(request: Request) -> tuple[list[Table], list[Shown]]:
    """A table a variant and information; the oracle stands in all of them."""
    from fedkd.planning.cluster import VARIANTS, ClusterSetting
    from fedkd.planning.dispatch_hindsight import hindsight, lower_bound_s

    tables: list[Table] = []
    shows: list[Shown] = []
    for variant in VARIANTS:
        arrivals = held_out(ClusterSetting(variant=variant), request, EPISODES)
        best = oracle(arrivals)
        request.say(f"rules: {variant}, hindsight")
        found = hindsight(arrivals, SLOT_START)
        for information in (SLOT_START, IN_SLOT):
            request.say(f"rules: {variant}, {information}")
            rules = outcomes(arrivals, information, SEEING if information == IN_SLOT else ())
            rows: Rows = {name: row(each, best) for name, each in rules.items()}
            rows[ORACLE] = row(best, best)
            rows[HINDSIGHT] = row(found, best)
            bound = lower_bound_s(arrivals)
            rows[BOUND] = {"mean": list(bound), "standard error": [error(bound)]}
            rows[BOUND]["mean / oracle"] = [float(bound.mean() / best.mean_s.mean())]
            title = f"Delay (s), {variant} work, {information} information, load {arrivals.cluster.load:.2f}"
            tables.append(Table(title, COLUMNS, rows, plain=True, digits=3))
            if information == SLOT_START:
                shows += _shows(variant, rows)
    return tables, shows


def notes(request: Request) -> list[str]:
    """What the figures do not say of themselves."""
    from fedkd.planning.cluster import ClusterSetting

    capacity = ClusterSetting().cluster().speed
    return [
        "mean, p50, p95, p99: ± is the standard deviation over episodes, all paired; the oracle is Opt-TS of LAD-TS, "
        "greedy for each task's own delay with in-slot information (7.37 s in the paper, whose edges are other draws)",
        f"capacities of the 20 edges: {', '.join(f'{each:g}' for each in capacity)} Gcycle/s",
        "social knows no horizon; hindsight search (slot-start) knows it, and takes each episode's best of 12 ceilings",
        "rules that take no notice of queues are the same with in-slot information, and left out of those tables",
    ]


def row(found: Outcome, best: Outcome) -> dict[str, list[float]]:
    """A scheduler's row: episodes' means and percentiles in s, the standard error, and ratios to the oracle."""
    return {
        "mean": list(found.mean_s),
        "standard error": [error(found.mean_s)],
        **{f"p{percent}": list(found.percentile_s(percent)) for percent in (50, 95, 99)},
        "mean / oracle": [float(found.mean_s.mean() / best.mean_s.mean())],
        "p99 / oracle": [float(found.percentile_s(99).mean() / best.percentile_s(99).mean())],
    }


def error(values: object) -> float:
    """Standard error of a mean."""
    import numpy as np

    each = np.asarray(values, float)
    return float(each.std(ddof=1) / math.sqrt(len(each))) if len(each) > 1 else math.nan


def _shows(variant: str, rows: Rows) -> list[Shown]:
    def ratio(name: str, column: str) -> float:
        return rows[name][f"{column} / oracle"][0]

    return [
        at_most(f"{variant}, slot-start: social's mean delay / the greedy oracle's", ratio(SOCIAL, "mean"), MEAN_BOUND),
        at_most(f"{variant}, slot-start: social's p99 / the greedy oracle's", ratio(SOCIAL, "p99"), TAIL_BOUND),
        at_most(
            f"{variant}, slot-start: mean delay of the mean-only objective / the greedy oracle's",
            ratio(SOCIAL_MEAN, "mean"),
            MEAN_ONLY_BOUND,
        ),
    ]
