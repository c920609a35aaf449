"""The sweeps of `fedkd bench dispatch --sweep`: tasks, capacity, steps and edges, as in LAD-TS Figs. 6 and 7."""

from __future__ import annotations

from typing import TYPE_CHECKING

from fedkd.cli.benchmarks.dispatch_figures import IN_SLOT, SLOT_START, SOCIAL, SOCIAL_MEAN, held_out, outcomes
from fedkd.cli.benchmarks.request import Request
from fedkd.cli.benchmarks.result import Rows, Shown, Table, at_least, at_most

if TYPE_CHECKING:
    from fedkd.planning.cluster import ClusterSetting

EPISODES = 6
AXES: dict[str, tuple[str, tuple[int, ...]]] = {
    "N": ("most tasks a slot at a base station", (10, 20, 30, 40, 50, 60, 70)),
    "f": ("largest capacity (Gcycle/s)", (30, 40, 50, 60, 70)),
    "z": ("most steps of a task", (5, 10, 15, 20)),
    "B": ("edges", (10, 15, 20, 30, 40)),
}
QUICK_POINTS = 2
PAPER: dict[str, dict[str, dict[str, float]]] = {  # seconds, where section V says them in words
    "N": {
        "50": {"Opt-TS": 7.37, "LAD-TS": 7.67, "D2SAC-TS": 8.39, "SAC-TS": 8.88, "DQN-TS": 9.59},
    },
    "z": {"20": {"LAD-TS": 18.80, "D2SAC-TS": 20.76, "SAC-TS": 21.25, "DQN-TS": 23.11}},
    "B": {"40": {"LAD-TS": 11.75, "D2SAC-TS": 12.96, "SAC-TS": 13.39, "DQN-TS": 16.95}},
}
IN_SLOT_NAMES = ("greedy", SOCIAL)
PARITY, LIGHT_GAIN, LIGHT = 1.02, 0.08, ("10", "20")


def tables_and_shows(request: Request) -> tuple[list[Table], list[Shown]]:
    """A table an axis and information, drawn as lines; how far social is from the best other rule at each point."""
    tables: list[Table] = []
    shows: list[Shown] = []
    for axis, (what, points) in AXES.items():
        points = points[:QUICK_POINTS] if request.quick else points
        found: dict[str, Rows] = {SLOT_START: {}, IN_SLOT: {}}
        for point in points:
            request.say(f"sweeps: {axis} = {point}")
            arrivals = held_out(setting(axis, point), request, EPISODES)
            for information, names in ((SLOT_START, ()), (IN_SLOT, IN_SLOT_NAMES)):
                for name, outcome in outcomes(arrivals, information, names).items():
                    found[information].setdefault(name, {})[str(point)] = list(outcome.mean_s)
        columns = [str(point) for point in points]
        for information, rows in found.items():
            others = found[SLOT_START] | rows  # what needs less is to be had as well
            worst = max(_beside_others(rows, others, column) for column in columns)
            shows.append(
                at_most(f"{axis} sweep, {information}: social / the best other rule, at its worst", worst, PARITY)
            )
            shown = rows | (_paper(axis, columns) if information == IN_SLOT else {})
            title = f"Mean delay (s) by {axis}, {information} information"
            tables.append(Table(title, columns, shown, plain=True, digits=3, chart="lines", across=what))
        if axis == "N":
            rows = found[IN_SLOT]
            shows += [
                at_least(
                    f"N = {column}, in-slot: what social saves of the greedy oracle's mean delay",
                    1 - _mean(rows[SOCIAL][column]) / _mean(rows["greedy"][column]),
                    LIGHT_GAIN,
                )
                for column in LIGHT
                if column in columns
            ]
    return tables, shows


def notes(request: Request) -> list[str]:
    """What the figures do not say of themselves."""
    return [
        "sweeps: one axis at a time from the default setting, fixed work; the edges of all points come from one "
        "seed; 'paper' rows are what section V gives in words, for other draws of the edges",
        "sweeps: social-mean is left out of 'the best other rule': it is ours as well",
    ]


def setting(axis: str, point: int) -> ClusterSetting:
    """The default setting with one thing changed."""
    from fedkd.planning.cluster import ClusterSetting

    usual = ClusterSetting()
    return {
        "N": lambda: ClusterSetting(tasks=point),
        "f": lambda: ClusterSetting(capacity=(usual.capacity[0], point)),
        "z": lambda: ClusterSetting(steps=(usual.steps[0], point)),
        "B": lambda: ClusterSetting(edges=point),
    }[axis]()


def _beside_others(rows: Rows, others: Rows, column: str) -> float:
    best_s = min(_mean(row[column]) for name, row in others.items() if name not in (SOCIAL, SOCIAL_MEAN))
    return _mean(rows[SOCIAL][column]) / best_s


def _mean(values: list[float]) -> float:
    return sum(values) / len(values)


def _paper(axis: str, columns: list[str]) -> Rows:
    rows: Rows = {}
    for column, methods in PAPER.get(axis, {}).items():
        for method, delay_s in methods.items():
            if column in columns:
                rows.setdefault(f"paper: {method}", {})[column] = [delay_s]
    return rows
