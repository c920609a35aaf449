"""`fedkd plan condition`: which visual condition to send, and how compressed."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from fedkd.cli.plan_profile_conditions import profile_conditions

if TYPE_CHECKING:
    from fedkd.planning.condition import ConditionProblem

__all__ = ["condition", "profile_conditions"]


def condition(
    preference: Annotated[
        float, typer.Option(help="0..1: what looking like the source counts; the rest is what the prompt says.")
    ] = 0.5,
    quality: Annotated[float, typer.Option(help="The quality to reach, 0..1.")] = 0.7,
    bandwidth: Annotated[float, typer.Option(help="Bit/s to the edge.")] = 10e6,
    steps: Annotated[int, typer.Option(help="Denoising steps that the picture will get.")] = 20,
    delay_limit: Annotated[float, typer.Option(help="Seconds to extract and send the condition, at most.")] = 10.0,
    extraction: Annotated[float, typer.Option(help="Seconds to extract it on the device.")] = 0.0,
    method: Annotated[str, typer.Option(help="exact (the smallest that will do), or vce (Algorithms 1-2).")] = "exact",
    profile: Annotated[
        Path | None, typer.Option(help="What `profile-conditions` measured; left out: the fitted surface.")
    ] = None,
    plot: Annotated[Path | None, typer.Option(help="The Pareto fronts, PNG or SVG.", show_default=False)] = None,
    as_json: Annotated[bool, typer.Option("--json", help="The plan and the fronts as JSON.")] = False,
) -> None:
    """Choose a visual condition with its resolution and quality, by preference and bandwidth (VCE).

    Example: fedkd plan condition --preference 0.8 --quality 0.75 --bandwidth 5e6 --plot fronts.svg
    Example: fedkd plan profile-conditions pictures/ --out mine.json; fedkd plan condition --profile mine.json
    """
    from fedkd.cli.console import guard

    with guard():
        from fedkd.cli.plan_figures import aligned
        from fedkd.cli.plan_figures import as_json as to_json
        from fedkd.planning.condition import ConditionProblem, choose
        from fedkd.planning.quality import ConditionProfile, QualitySurface

        scores = QualitySurface().profile() if profile is None else ConditionProfile.load(profile)
        problem = ConditionProblem(
            scores, preference, quality, bandwidth, steps, delay_limit_s=delay_limit, extraction_s=extraction
        )
        chosen, plans = choose(problem, method)
        variant, fronts = int(chosen[0]), _fronts(problem)
        if plot is not None:
            _draw(problem, variant, fronts, plot)
        if as_json:
            points = {
                name: [
                    {"condition": scores.name(v), "bytes": scores.size_bytes[v], "quality": problem.quality[0, v]}
                    for v in front
                ]
                for name, front in fronts.items()
            }
            print(to_json({"plan": plans[0].facts(), "bytes": scores.size_bytes[variant], "fronts": points}))
            return
        print("\n".join(plans[0].reasons) + "\n")
        rows = []
        for name, front in fronts.items():
            good = [v for v in front if problem.quality[0, v] >= quality]
            best = good[0] if good else front[-1]
            row = [name, len(front), f"{problem.quality[0, front[-1]]:.3f}", f"{scores.resolution[best]:g}"]
            size, sent = scores.size_bytes[best] / 1e3, problem.delay_s[0, best]
            rows.append([*row, f"{scores.level[best]:g}", f"{size:.1f}", f"{sent:.3f}", "yes" if good else "no"])
        headings = ["condition", "front", "best", "resolution", "quality", "kB", "delay s", "good enough"]
        print("\n".join(aligned(headings, rows)))
        if plot is not None:
            print(f"wrote {plot}")


def _fronts(problem: ConditionProblem) -> dict[str, list[int]]:
    """{condition: variants on its Pareto front for this user, the smallest first}."""
    import numpy as np

    from fedkd.planning.condition import pareto_front

    scores, quality = problem.profile, problem.quality[0]
    found = {}
    for name in dict.fromkeys(scores.conditions):
        here = np.flatnonzero([each == name for each in scores.conditions])
        front = here[pareto_front(quality[here], scores.size_bytes[here])]
        found[name] = [int(v) for v in front[np.lexsort((quality[front], scores.size_bytes[front]))]]
    return found


def _draw(problem: ConditionProblem, variant: int, fronts: dict[str, list[int]], path: Path) -> None:
    from fedkd.cli.plan_figures import front_figure

    scores, quality = problem.profile, problem.quality[0]
    front_figure(
        path,
        {name: ([scores.size_bytes[v] / 1e3 for v in f], [quality[v] for v in f]) for name, f in fronts.items()},
        (scores.size_bytes[variant] / 1e3, float(quality[variant])),
        axes=("size of the condition (kB)", f"quality after {problem.steps} steps"),
        title="Pareto fronts of visual conditions",
        label=f"chosen: {scores.name(variant)}",
        limits=(None, float(problem.quality_floor[0])),
    )
