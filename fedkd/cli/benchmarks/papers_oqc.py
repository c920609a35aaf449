"""OQC Figs. 1-2 beside what its equations give: cost parts and objective as the edge's budget of steps grows."""

from __future__ import annotations

from itertools import pairwise
from typing import Any

from fedkd.cli.benchmarks.request import Request
from fedkd.cli.benchmarks.result import Rows, Shown, Table, at_least, at_most

USERS = 30
BUDGETS = (100, 150, 200, 250, 300, 350, 400, 450, 500)  # the abscissa of both figures
QUICK_BUDGETS = (100, 300, 500)
DEVICE_MOST = (5, 10, 15)  # "three distinct experiments"; the paper does not say which
COSTS = ("time", "error", "energy")
RAISED, REST = 0.6, 0.2  # "we augment c1, c2, and c3"; the paper does not say by how much
EQUAL = "equal weights"
PARTS = {"delay_s": "total time (s)", "accuracy": "mean accuracy 1 - error", "energy_j": "total energy (J)"}
SEEDS = range(1, 6)  # of the random baseline


def tables_and_shows(request: Request) -> tuple[list[Table], list[Shown]]:
    """Figs. 1 (a) to (c) and 2 as tables over S_e, and what of the paper's statements holds; quick: without SCA."""
    from fedkd.planning.offload import oqc_problem, solve

    budgets = QUICK_BUDGETS if request.quick else BUDGETS
    figure_1 = _figure_1(request, budgets)
    columns = [str(budget) for budget in budgets]
    tables = [
        Table(f"OQC Fig. 1({letter}): {title}, by S_e", columns, figure_1[part], plain=True, digits=3)
        for letter, (part, title) in zip("abc", PARTS.items(), strict=True)
    ]
    objectives: Rows = {}
    for most in DEVICE_MOST:
        for method, name in (("auto", "exact"), ("sca", "OQC's SCA")):
            if method == "sca" and request.quick:
                continue
            objectives[f"S_0 = {most}, {name}"] = {
                str(budget): [solve(oqc_problem(USERS, budget, device_most_steps=most), method).objective]
                for budget in budgets
            }
    title = "OQC Fig. 2: objective of all users, by S_e"
    tables.append(Table(title, columns, objectives, plain=True, digits=3, chart="lines", across="S_e"))

    exact = {row: [figures[column][0] for column in columns] for row, figures in objectives.items() if "exact" in row}
    rises = max(later - earlier for row in exact.values() for earlier, later in pairwise(row))
    flattest = exact[f"S_0 = {DEVICE_MOST[-1]}, exact"]
    energy = [figure_1["energy_j"][EQUAL][column][0] for column in columns]
    accuracy = {
        row: [sum(each) / len(each) for each in (figures[column] for column in columns)]
        for row, figures in figure_1["accuracy"].items()
    }
    ahead = min(ours - theirs for ours, theirs in zip(accuracy[EQUAL], accuracy["random"], strict=True))
    raised = min(more - same for more, same in zip(accuracy["more on error"], accuracy[EQUAL], strict=True))
    in_hz = solve(oqc_problem(USERS, 300, device_power=1e-2, edge_power=1e-2))
    shows = [
        at_most("OQC Fig. 2: the objective's largest rise as S_e grows (it declines)", rises, 1e-9),
        at_most(
            "OQC Fig. 2: fall over the last S_e at the largest S_0 (it levels off)", flattest[-2] - flattest[-1], 0.1
        ),
        at_least("OQC Fig. 1(c): the last energy / the first (it increases)", energy[-1] / energy[0], 1.0),
        at_least("OQC Fig. 1(b): accuracy above the random baseline's, least over S_e", ahead, 0.0),
        at_least(
            "OQC Fig. 1(b): accuracy with more weight on the error above equal weights', least over S_e", raised, 0.0
        ),
        at_most("OQC: users offloaded when 10^-2 is taken in W/Hz³", float(in_hz.at_edge.sum()), 0.0),
    ]
    return tables, shows


def notes(request: Request) -> list[str]:
    """What the paper's own equations cannot give, or leave open."""
    return [
        "OQC Figs. 1-2 are drawn without a table and without C1, C2, S_0, S_1, w or the raised weights: shapes can be "
        "compared, values cannot; ours: C1, C2 uniform in 0.1..0.3, S_0 10, S_1 20, w (0.3, 0.7), raised weight "
        f"{RAISED:g} beside {REST:g}, S_0 {', '.join(map(str, DEVICE_MOST))} in Fig. 2",
        "OQC Fig. 1(a), 'time is decreased': by Eq. 3 a task at its limit takes S_0/500 = S_1/1000 = 0.02 s on either "
        "side, so the optimum's time hardly falls; SCA's falls because it gives offloaded tasks fewer steps",
        "OQC Fig. 1, 'all proposed methods outperform the baseline': in accuracy yes; random steps take less time and "
        "less energy than the optimum, as Eqs. 3, 5 and 6 charge every step and the baseline runs fewer",
        "OQC Fig. 1, 'equal weights outperform others comprehensively': not by Eq. 8; with more weight on the error "
        "the optimum's accuracy is never lower here",
        "OQC, 'efficiency 10^-2' holds with clocks in GHz; in Hz one step at the edge takes 1e25 J, so that nothing "
        "is ever offloaded",
    ]


def _figure_1(request: Request, budgets: tuple[int, ...]) -> dict[str, Rows]:
    """{part: {weights: {S_e: values}}}: exact for four weightings, the random baseline, OQC's SCA unless quick."""
    from fedkd.planning.offload import oqc_problem, solve

    weights: dict[str, dict[str, Any]] = {EQUAL: {}}
    for cost in COSTS:
        weights[f"more on {cost}"] = {f"{each}_weight": RAISED if each == cost else REST for each in COSTS}
    cases: list[tuple[str, str, dict[str, Any], tuple[int, ...]]] = [
        (name, "auto", changes, (0,)) for name, changes in weights.items()
    ]
    cases.append(("random", "random", {}, tuple(SEEDS)))
    if not request.quick:
        cases.append(("OQC's SCA, equal weights", "sca", {}, (0,)))
    found: dict[str, Rows] = {part: {} for part in PARTS}
    for name, method, changes, seeds in cases:
        for budget in budgets:
            problem = oqc_problem(USERS, budget, **changes)
            for seed in seeds:
                parts = solve(problem, method, seed).parts()
                values = {
                    "delay_s": float(parts["delay_s"].sum()),
                    "accuracy": 1 - float(parts["error"].mean()),
                    "energy_j": float(parts["energy_j"].sum()),
                }
                for part, value in values.items():
                    found[part].setdefault(name, {}).setdefault(str(budget), []).append(value)
    return found
