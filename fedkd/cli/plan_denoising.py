"""`fedkd plan denoising`: edge and device steps for everyone under the edge's budget, exactly."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

if TYPE_CHECKING:
    from fedkd.planning.denoising_problem import Allocation
    from fedkd.planning.denoising_requests import Asked

BUDGETS = 24


def denoising(
    requests: Annotated[
        Path | None,
        typer.Argument(help="JSON of users and the edge; left out: one round of the paper's.", show_default=False),
    ] = None,
    users: Annotated[int, typer.Option(help="Without REQUESTS: how many users (devices of Table I in turn).")] = 5,
    seed: Annotated[int, typer.Option(help="Without REQUESTS: which round.")] = 0,
    edge_steps: Annotated[
        int | None, typer.Option(help="The edge's budget of steps.", show_default="the requests', or 60")
    ] = None,
    objective: Annotated[
        str, typer.Option(help="satisfied-bytes-utility, satisfied-utility, utility or reward.")
    ] = "satisfied-bytes-utility",
    joint: Annotated[
        bool, typer.Option("--joint", help="Choose everyone's condition and compression as well.")
    ] = False,
    profile: Annotated[
        Path | None, typer.Option(help="What `profile-conditions` measured; left out: the fitted surface.")
    ] = None,
    compare: Annotated[bool, typer.Option("--compare", help="Equal steps and all-or-nothing beside it.")] = False,
    plot: Annotated[
        Path | None, typer.Option(help="Satisfied users over the budget, PNG or SVG.", show_default=False)
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="The plans as JSON.")] = False,
    example: Annotated[bool, typer.Option("--example", help="Print requests to start from.")] = False,
) -> None:
    """Decide how many steps everyone gets, at the edge and on their device (DDC, problem P2), exactly.

    In order: most users whose quality and delay are as they asked, then fewest bytes, then most utility.

    Example: fedkd plan denoising --example > users.json; fedkd plan denoising users.json --compare
    Example: fedkd plan denoising --users 11 --seed 3 --plot budget.png
    """
    from fedkd.cli.console import guard

    with guard():
        from dataclasses import replace

        from fedkd.cli.plan_figures import as_json as to_json
        from fedkd.planning.denoising import allocate
        from fedkd.planning.denoising_requests import EXAMPLE, Asked

        if example:
            print(to_json(EXAMPLE))
            return
        asked = _asked(requests, profile, joint, users, seed)
        if edge_steps is not None:
            asked = Asked(replace(asked.problem, edge_steps=edge_steps), asked.profile, asked.variants)
        found, plans = allocate(asked.problem, objective)
        names = asked.names(found.variant)
        plans = [replace(each, condition=name) for each, name in zip(plans, names, strict=True)]
        others = _others(asked) if compare else {}
        if plot is not None:
            _draw(asked, found, objective, plot)
        if as_json:
            facts = {"plans": [each.facts() for each in plans], **_summary(found)}
            print(
                to_json(facts | ({"compared": {name: _summary(one) for name, one in others.items()}} if others else {}))
            )
            return
        _print(found, names, {"planner": found} | others)
        if plot is not None:
            print(f"wrote {plot}")


def _asked(requests: Path | None, profile: Path | None, joint: bool, users: int, seed: int) -> Asked:
    import numpy as np

    from fedkd.planning.denoising_requests import Asked, load
    from fedkd.planning.denoising_rounds import draw
    from fedkd.planning.quality import ConditionProfile, QualitySurface

    scores = QualitySurface().profile() if profile is None else ConditionProfile.load(profile)
    if requests is not None:
        return load(requests, scores, joint=joint)
    found = draw(scores, np.random.default_rng(seed), users)
    if joint:
        everything = np.broadcast_to(np.arange(len(scores.conditions)), (users, len(scores.conditions)))
        return Asked(found.joint(), scores, everything)
    variants = found.conditions()
    return Asked(found.given(variants), scores, variants[:, None])


def _others(asked: Asked) -> dict[str, Allocation]:
    from fedkd.planning.denoising_baselines import binary, equal_steps
    from fedkd.planning.system import PlanningError

    found = {}
    for name, rival in (("equal steps", equal_steps), ("all or nothing", binary)):
        try:
            found[name] = rival(asked.problem)
        except PlanningError:  # this one has no answer here; the table goes without it
            continue
    return found


def _summary(found: Allocation) -> dict[str, Any]:
    return {
        "satisfied": int(found.satisfied.sum()),
        "users": found.problem.users,
        "bytes": found.bytes_moved,
        "utility": float(found.utility.sum()),
        "round_delay_s": found.round_delay_s,
        "edge_steps": int(found.edge_steps.sum()),
        "edge_budget": int(found.problem.edge_steps),
    }


def _print(found: Allocation, names: list[str], compared: dict[str, Allocation]) -> None:
    from fedkd.cli.plan_figures import aligned

    problem = found.problem
    rows = [
        [
            problem.name(k),
            int(found.edge_steps[k]),
            f"{found.device_steps[k]} of {problem.device_steps[k]}",
            f"{found.quality[k]:.3f} of {problem.quality_floor[k]:.3f}",
            f"{found.delay_s[k]:.2f}",
            f"{(found.up_bytes[k] + found.down_bytes[k]) / 1e3:.1f}",
            "yes" if found.satisfied[k] else "no",
            names[k],
        ]
        for k in range(problem.users)
    ]
    headings = ["user", "edge", "device", "quality", "delay s", "kB", "satisfied", "condition"]
    print("\n".join(aligned(headings, rows)) + "\n")
    rows = [
        [
            name,
            f"{each.satisfied.sum()} of {problem.users}",
            f"{each.edge_steps.sum()} of {problem.edge_steps}",
            f"{each.bytes_moved / 1e3:.1f}",
            f"{each.utility.sum():.3f}",
            f"{each.round_delay_s:.2f}",
        ]
        for name, each in compared.items()
    ]
    print("\n".join(aligned(["", "satisfied", "edge steps", "kB", "utility", "round s"], rows)))


def _draw(asked: Asked, found: Allocation, objective: str, path: Path) -> None:
    """Satisfied users over the edge's budget, with the asked one marked."""
    from dataclasses import replace

    from fedkd.cli.plan_figures import front_figure
    from fedkd.planning.denoising import solve
    from fedkd.planning.denoising_baselines import binary
    from fedkd.planning.system import PlanningError

    problem = asked.problem
    most = max(2 * problem.edge_steps, problem.users)
    budgets = sorted({round(most * k / BUDGETS) for k in range(BUDGETS + 1)} | {problem.edge_steps})
    series: dict[str, tuple[list[int], list[int]]] = {}
    for name, method in (("exact", lambda each: solve(each, objective)), ("all or nothing", binary)):
        x, y = series.setdefault(name, ([], []))
        for budget in budgets:
            try:
                y.append(int(method(replace(problem, edge_steps=budget)).satisfied.sum()))
                x.append(budget)
            except PlanningError:  # too small a budget to give everyone a picture
                continue
    front_figure(
        path,
        series,
        (problem.edge_steps, int(found.satisfied.sum())),
        axes=("the edge's budget (steps)", "satisfied users"),
        title=f"{problem.users} users, {objective}",
    )
