"""`fedkd plan offload`: who goes to the edge and with how many steps, with a proof of how good that is."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

if TYPE_CHECKING:
    from fedkd.planning.offload import OffloadProblem, OffloadSolution

SHOWN_USERS, POINTS = 30, 20
PARTS = {"delay_s": "delay s", "energy_j": "energy J", "error": "error", "utility": "utility"}
COMPARED = ("dual", "dp", "milp", "sca", "sca-random", "random")
EXAMPLE = """\
# one number a user
error_decay: [0.12, 0.25, 0.18]
utility_growth: [0.22, 0.11, 0.29]
# one number, or one a user
device_step_s: [0.02, 0.05, 0.03]
edge_step_s: 0.002
device_most_steps: 10
edge_most_steps: 20
# what the edge can run in all
edge_budget_steps: 30
"""
SLOW_ABOVE = 2_000  # users; HiGHS and SCA then take minutes


def offload(
    problem_file: Annotated[
        Path | None,
        typer.Argument(
            metavar="[PROBLEM]",
            help="YAML or JSON with error_decay, utility_growth (one number a user), edge_budget_steps and what else "
            "differs from OQC's setting. Left out: OQC's setting for --users.",
            show_default=False,
        ),
    ] = None,
    users: Annotated[int | None, typer.Option(help="Users of OQC's setting.", show_default="30")] = None,
    edge_steps: Annotated[
        int | None,
        typer.Option(help="Steps the edge can run in all.", show_default="the file's, or 200 per 30 users"),
    ] = None,
    least_steps: Annotated[int | None, typer.Option(help="Fewest steps of a picture.", show_default="1")] = None,
    method: Annotated[
        str, typer.Option(help="auto, dual, dp, milp (exact), sca, sca-random, random (the paper's and its baseline).")
    ] = "auto",
    seed: Annotated[int, typer.Option(help="Seed of OQC's setting.")] = 0,
    compare: Annotated[bool, typer.Option("--compare", help="All methods side by side.")] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Everything as JSON on stdout.")] = False,
    plot: Annotated[
        Path | None,
        typer.Option(help="Draw the optimum by the edge's budget to this PNG or SVG.", show_default=False),
    ] = None,
    example: Annotated[bool, typer.Option("--example", help="Print a PROBLEM to start from.")] = False,
) -> None:
    """Decide who goes to the edge, and with how many steps, under the edge's budget of steps (OQC, problem P1).

    The answer carries a bound that no choice can go below: gap 0 is proven optimal. Units are SI: seconds a step,
    clock in Hz, power in W/Hz³.

    Example: fedkd plan offload --users 30 --edge-steps 100 --compare
    Example: fedkd plan offload --users 1000000
    Example: fedkd plan offload --example > mine.yaml; fedkd plan offload mine.yaml --plot front.svg
    """
    from fedkd.cli.console import guard

    with guard():
        from fedkd.cli.plan_figures import as_json as to_json
        from fedkd.planning.offload import solve

        if example:
            print(EXAMPLE, end="")
            return
        problem = _problem(problem_file, users, edge_steps, least_steps, seed)
        solution = solve(problem, method)
        others = _others(solution) if compare else []
        if plot is not None:
            _draw(solution, plot)
        if as_json:
            print(to_json(_facts(solution, others)))
            return
        _print(solution, others)
        if plot is not None:
            print(f"wrote {plot}")


def _problem(
    path: Path | None, users: int | None, edge_steps: int | None, least_steps: int | None, seed: int
) -> OffloadProblem:
    """The problem of the file, or OQC's setting; PlanningError for a field that is not one."""
    from fedkd.planning.offload import FIELDS, OffloadProblem, oqc_problem
    from fedkd.planning.system import PlanningError

    changes: dict[str, Any] = {} if least_steps is None else {"least_steps": least_steps}
    if path is None:
        return oqc_problem(30 if users is None else users, edge_steps, seed, **changes)
    if users is not None:
        raise PlanningError(f"--users {users} and {path} both say who there is; give one")
    import yaml

    from fedkd.recipe import nearest

    try:
        given = yaml.safe_load(path.read_text("utf-8"))
    except (OSError, yaml.YAMLError, UnicodeDecodeError) as error:
        raise PlanningError(
            f"{path} cannot be read as YAML or JSON: {error}; `fedkd plan offload --example` prints such a file"
        ) from None
    if not isinstance(given, dict):
        raise PlanningError(f"{path} holds no fields; give at least {', '.join(FIELDS[:3])}")
    for name in given:
        if name not in FIELDS:
            raise PlanningError(f"{path}: no field {name!r}; {nearest(str(name), FIELDS)}")
    given |= changes | ({} if edge_steps is None else {"edge_budget_steps": edge_steps})
    for name in FIELDS[:3]:
        if name not in given:
            raise PlanningError(f"{path} lacks {name}; give {'it' if name != FIELDS[2] else 'it, or --edge-steps'}")
    return OffloadProblem(**given)


def _others(solution: OffloadSolution) -> list[OffloadSolution]:
    """The same problem by the methods that can do it in seconds."""
    from fedkd.planning.offload import solve
    from fedkd.planning.system import PlanningError

    found = []
    for method in COMPARED:
        slow = solution.problem.users > SLOW_ABOVE and method in ("milp", "sca", "sca-random")
        if slow or method == solution.method:
            continue
        try:
            found.append(solve(solution.problem, method))
        except PlanningError:  # too large for this method: the table goes without it
            continue
    return found


def _facts(solution: OffloadSolution, others: list[OffloadSolution]) -> dict[str, Any]:
    problem = solution.problem
    return {
        **_summary(solution),
        "users": problem.users,
        "edge_budget_steps": problem.edge_budget_steps,
        "at_edge": solution.at_edge.tolist(),
        "steps": solution.steps.tolist(),
        **({"compared": [_summary(other) for other in others]} if others else {}),
    }


def _summary(solution: OffloadSolution) -> dict[str, Any]:
    return {
        "method": solution.method,
        "objective": solution.objective,
        "lower_bound": solution.lower_bound,
        "gap": solution.gap,
        "offloaded": int(solution.at_edge.sum()),
        "edge_steps": solution.edge_steps,
        "mean": {name: float(values.mean()) for name, values in solution.parts().items()},
    }


def _print(solution: OffloadSolution, others: list[OffloadSolution]) -> None:
    from fedkd.cli.plan_figures import aligned

    rows = []
    for each in [solution, *others]:
        parts = each.parts()
        row = [each.method, f"{each.objective:.6f}"]
        row += ["-" if each.gap is None else "0" if each.gap == 0 else f"{each.gap:.1e}"]
        row += [f"{int(each.at_edge.sum())} of {each.problem.users}"]
        row += [f"{each.edge_steps} of {each.problem.edge_budget_steps}"]
        rows.append([*row, *(f"{parts[name].mean():.4f}" for name in PARTS)])
    print("\n".join(aligned(["method", "objective", "gap", "offloaded", "edge steps", *PARTS.values()], rows)))
    print("gap: distance from the optimum at most, 0 is proven optimal, - proves nothing; the rest: mean of a user\n")
    parts, shown = solution.parts(), min(SHOWN_USERS, solution.problem.users)
    rows = [
        [str(n), "edge" if solution.at_edge[n] else "device", str(solution.steps[n])]
        + [f"{parts[name][n]:.4f}" for name in PARTS]
        for n in range(shown)
    ]
    print("\n".join(aligned(["user", "where", "steps", *PARTS.values()], rows)))
    if shown < solution.problem.users:
        print(f"the first {shown} of {solution.problem.users} users; all of them with --json")


def _draw(solution: OffloadSolution, path: Path) -> None:
    """The optimum over the edge's budget, with the answer on it."""
    from fedkd.cli.plan_figures import front_figure
    from fedkd.planning.offload import front

    problem = solution.problem
    least, asked = problem.least_edge_steps, problem.edge_budget_steps
    most = max(2 * asked, least + POINTS)
    budgets = sorted({least + (most - least) * k // POINTS for k in range(POINTS + 1)} | {asked})
    front_figure(
        path,
        {"least cost": (budgets, [each.objective for each in front(problem, budgets)])},
        (asked, solution.objective),
        axes=("steps the edge can run in all", "cost less utility of all users"),
        title=f"{problem.users} users between device and edge",
        label=f"chosen: {int(solution.at_edge.sum())} users at the edge, by {solution.method}",
    )
