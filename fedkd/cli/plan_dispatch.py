"""`fedkd plan dispatch`: schedulers that say which edge serves, side by side on a cluster of your own."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

if TYPE_CHECKING:
    from fedkd.planning.cluster import ClusterSetting
    from fedkd.planning.dispatch_episodes import Outcome

COMPARED = "capacity-proportional,least-own-work,jsq,sita,greedy,social,social-mean"
PERCENTS = (50, 95, 99)
CURVE_POINTS = 200


def dispatch(
    changes: Annotated[
        list[str] | None,
        typer.Argument(
            metavar="[FIELD=VALUE]...",
            help="What differs from LAD-TS's cluster, such as tasks=20 edges=8 capacity=10,70 variant=random "
            "arrivals=bursty sizes=heavy failure=0.005.",
            show_default=False,
        ),
    ] = None,
    schedulers: Annotated[str, typer.Option(help="Names with commas, or all.")] = COMPARED,
    policy: Annotated[
        list[Path] | None,
        typer.Option(help="A policy of `fedkd plan dispatch-train`, compared too.", show_default=False),
    ] = None,
    information: Annotated[str, typer.Option(help="slot-start, or in-slot: also what was sent in this slot.")] = (
        "slot-start"
    ),
    episodes: Annotated[int, typer.Option(min=1, help="How many, the same for every scheduler.")] = 8,
    seed: Annotated[int, typer.Option(min=0, help="The first episode's seed.")] = 0,
    plot: Annotated[Path | None, typer.Option(help="Who waits how long, as PNG or SVG.", show_default=False)] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Everything as JSON on stdout.")] = False,
) -> None:
    """Compare schedulers that say which edge serves each request (LAD-TS), on the same arrivals.

    Delays are in seconds, with the standard error of the mean over episodes; the ratio is to the greedy oracle, which
    minimises each request's own delay and sees all that was sent before it.

    Example: fedkd plan dispatch tasks=20
    Example: fedkd plan dispatch variant=random arrivals=bursty --schedulers social,jsq --plot tail.png
    Example: fedkd plan dispatch edges=8 --policy runs/dispatch/policy
    """
    from fedkd.cli.console import guard

    with guard():
        from fedkd.cli.plan_figures import as_json as to_json
        from fedkd.planning.cluster import draw
        from fedkd.planning.dispatch import SCHEDULERS
        from fedkd.planning.dispatch_episodes import run
        from fedkd.planning.dispatch_hindsight import lower_bound_s
        from fedkd.planning.learning.social_policy import offer

        names = [*_names(schedulers, list(SCHEDULERS)), *(offer(path) for path in policy or [])]
        setting = cluster_setting(changes or [])
        arrivals = draw(setting, range(seed, seed + episodes))
        oracle = run(arrivals, SCHEDULERS["greedy"], "in-slot")
        found = {name: run(arrivals, SCHEDULERS[name], information) for name in names}
        found["greedy oracle (in-slot)"] = oracle
        bound_s = float(lower_bound_s(arrivals).mean())
        facts = {
            "load": arrivals.cluster.load,
            "information": information,
            "lower_bound_s": bound_s,
            "schedulers": {name: _facts(each, oracle) for name, each in found.items()},
        }
        if plot is not None:
            _draw(found, plot)
        if as_json:
            print(to_json(facts))
            return
        _print(facts, episodes)
        if plot is not None:
            print(f"wrote {plot}")


def _names(text: str, known: list[str]) -> list[str]:
    from fedkd.planning.system import PlanningError
    from fedkd.recipe import nearest

    if text == "all":
        return known
    names = [name.strip() for name in text.split(",") if name.strip()]
    for name in names:
        if name not in known:
            raise PlanningError(f"--schedulers: no scheduler named {name!r}; {nearest(name, known)}")
    return names


def cluster_setting(changes: list[str]) -> ClusterSetting:
    """LAD-TS's setting with `field=value` changes, a pair as `10,70`."""
    from dataclasses import fields

    from fedkd.planning.cluster import ClusterSetting
    from fedkd.planning.system import PlanningError
    from fedkd.recipe import nearest

    usual = {each.name: getattr(ClusterSetting(), each.name) for each in fields(ClusterSetting)}
    given: dict[str, Any] = {}
    for change in changes:
        name, _, text = change.partition("=")
        if name not in usual:
            raise PlanningError(f"'{change}' changes no field of a cluster; {nearest(name, list(usual))}")
        kind = type(usual[name])
        try:
            if kind is tuple:
                inner = type(usual[name][0])
                low, high = (inner(part) for part in text.split(","))
                given[name] = (low, high)
            else:
                given[name] = kind(text)
        except ValueError:
            example = ",".join(f"{part:g}" for part in usual[name]) if kind is tuple else usual[name]
            raise PlanningError(f"'{change}' is not of the kind of {name}={example}") from None
    return ClusterSetting(**given)


def _facts(found: Outcome, oracle: Outcome) -> dict[str, float]:
    mean_s = found.mean_s
    error_s = float(mean_s.std(ddof=1) / len(mean_s) ** 0.5) if len(mean_s) > 1 else float("nan")
    return {
        "mean_s": float(mean_s.mean()),
        "standard_error_s": error_s,
        **{f"p{percent}_s": float(found.percentile_s(percent).mean()) for percent in PERCENTS},
        "beside_oracle": float(mean_s.mean() / oracle.mean_s.mean()),
    }


def _print(facts: dict[str, Any], episodes: int) -> None:
    from fedkd.cli.plan_figures import aligned

    print(f"load {facts['load']:.2f}, {facts['information']} information, {episodes} episodes\n")
    rows = [
        [name, *(f"{value:.3f}" if value == value else "-" for value in each.values())]
        for name, each in facts["schedulers"].items()
    ]
    headings = ["delay in s", "mean", "+-", *(f"p{percent}" for percent in PERCENTS), "x oracle"]
    print("\n".join(aligned(headings, rows)))
    print(f"\nno schedule has a mean below {facts['lower_bound_s']:.3f} s")


def _draw(found: dict[str, Outcome], path: Path) -> None:
    """Delay over the share of tasks that wait no longer, with the best mean marked at its median."""
    import numpy as np

    from fedkd.cli.plan_figures import front_figure

    shares = np.linspace(0, 100, CURVE_POINTS)[1:-1]
    series = {
        name: (shares.tolist(), np.percentile(np.concatenate(each.delays_s), shares).tolist())
        for name, each in found.items()
    }
    best = min(found, key=lambda name: float(found[name].mean_s.mean()))
    middle = float(np.median(np.concatenate(found[best].delays_s)))
    front_figure(
        path,
        series,
        (50.0, middle),
        axes=("tasks served sooner (%)", "delay (s)"),
        title="Who waits how long",
        label=f"{best}: least mean, its median",
    )
