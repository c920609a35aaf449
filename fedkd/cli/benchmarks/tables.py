"""The tables, promises and notes of `fedkd bench distillation`, from its cells."""

from __future__ import annotations

import math
import statistics
from typing import Any

from fedkd.cli.benchmarks import few_step, regimes, step_cost, students
from fedkd.cli.benchmarks.cells import Facts, mean, number
from fedkd.cli.benchmarks.distillation import MATERIALS, STEP, Key, folder_of, recipe_of
from fedkd.cli.benchmarks.request import Request
from fedkd.cli.benchmarks.result import Result, Rows, Shown, Table, at_least

GAP_BOUND, FOUR_STEP_BOUND, ONE_STEP_BOUND = 0.90, 0.95, 0.85
PER_SAMPLE = students.row_of("provenance")


class Figures:
    """The cells of all seeds, by row."""

    def __init__(self, request: Request, seeds: list[int], found: dict[Key, Facts]) -> None:
        self.request, self.seeds, self.found = request, seeds, found
        self.recipes = {seed: recipe_of(request, seed) for seed in seeds}
        self.rows: dict[int, dict[str, str]] = {}  # names of cells by seed and row
        self.regimes: dict[int, dict[tuple[str, str], str]] = {}
        self.few_rows: dict[int, dict[str, str]] = {}
        for seed, recipe in self.recipes.items():
            folder = folder_of(request, seed)
            self.rows[seed] = {row: c.name for row, c in students.cells(recipe, folder).items()}
            self.regimes[seed] = {row: c.name for row, c in regimes.cells(recipe, folder).items()}
            self.few_rows[seed] = {row: c.name for row, c in few_step.cells(recipe, folder, request.quick).items()}
        self.step = {
            (what, variant): facts
            for (_, name), facts in found.items()
            if name.startswith(f"{STEP}/")
            for _, what, variant in [name.split("/")]
        }

    def student(self, row: str, seed: int) -> Facts:
        """Facts of a row of the table of students."""
        return self.found[seed, self.rows[seed][row]]

    def regime(self, regime: str, gamma: str, seed: int) -> Facts:
        """Facts of a regime's student."""
        return self.found[seed, self.regimes[seed][regime, gamma]]

    def few(self, row: str, seed: int) -> Facts:
        """Facts of a few-step student, the teachers or real pictures."""
        return self.found[seed, self.few_rows[seed][row]]

    def over_seeds(self, of: Any) -> list[float]:
        """`of(seed)` for all seeds where it is a number."""
        return [value for seed in self.seeds if not math.isnan(value := of(seed))]


def result_of(request: Request, seeds: list[int], found: dict[Key, Facts]) -> Result:
    """All that the benchmark says."""
    figures = Figures(request, seeds, found)
    tables = [_students(figures), *_few_steps(figures), _gamma(figures), *_regimes(figures)]
    tables += step_cost.tables(request, figures.step)
    result = Result(request.name, request.command, seeds, tables)
    result.shows = [*_student_shows(figures), *_few_step_shows(figures), *step_cost.shows(request, figures.step)]
    result.notes = [*_notes(figures), *step_cost.notes(figures.recipes[seeds[0]], request)]
    return result


def _students(figures: Figures) -> Table:
    rows: Rows = {}
    columns: list[str] = []
    first = figures.seeds[0]
    for row in figures.rows[first]:
        for seed in figures.seeds:
            concepts = figures.found[seed, MATERIALS]["concepts"]
            found = students.slices(figures.recipes[seed], figures.student(row, seed), concepts)
            for column, value in found.items():
                rows.setdefault(row, {}).setdefault(column, []).append(value)
                columns += [column] if column not in columns else []
        rows.setdefault(row, {})
    title = "Prompt accuracy by held-out slice (percent), students at equal steps"
    return Table(title, columns, rows)


def _few_steps(figures: Figures) -> list[Table]:
    columns = [str(steps) for steps in (*few_step.STEPS, few_step.FULL_STEPS)]
    names = (few_step.TEACHER, few_step.UNGUIDED, *few_step.METHODS)

    def rows(field: str) -> Rows:
        return {
            name: {
                c: figures.over_seeds(lambda seed, n=name, c=c: number(figures.few(n, seed), c, field)) for c in columns
            }
            for name in names
        }

    floor = {
        field: figures.over_seeds(lambda s, f=field: number(figures.few(few_step.REAL, s), f))
        for field in ("fid", "kid")
    }
    every = {field: {few_step.REAL: dict.fromkeys(columns, floor[field])} for field in floor}
    title = "by sampling steps"
    return [
        Table(f"Prompt accuracy {title} (percent)", columns, rows("accuracy"), chart="lines", across="sampling steps"),
        Table(f"FID {title}", columns, rows("fid") | every["fid"], plain=True, digits=2),
        Table(f"KID {title}", columns, rows("kid") | every["kid"], plain=True),
    ]


def _gamma(figures: Figures) -> Table:
    rows: Rows = {}
    for gamma in ("0", regimes.EQUAL_SECONDS, "0.5", "0.9"):
        row = gamma if gamma == regimes.EQUAL_SECONDS else f"gamma {gamma}, equal steps"
        for column, field in {"taught": "taught", "known": "known", "all": "accuracy", "steps": "steps"}.items():
            rows.setdefault(row, {})[column] = figures.over_seeds(
                lambda seed, g=gamma, f=field: number(figures.regime(regimes.AS_IS, g, seed), f)
            )
        rows[row]["ms a step"] = figures.over_seeds(
            lambda seed, g=gamma: 1000 * number(figures.regime(regimes.AS_IS, g, seed), "step_seconds")
        )
    columns = ["taught", "known", "all", "steps", "ms a step"]
    title = "The distillation term at equal steps and equal seconds (percent), lambda by provenance"
    return Table(title, columns, rows, plain_columns=["steps", "ms a step"])


def _regimes(figures: Figures) -> list[Table]:
    tables = []
    for field, name in (("accuracy", "all prompts"), ("taught", "taught concepts")):
        rows: Rows = {}
        for regime in regimes.REGIMES:
            rows[regime] = {
                f"gamma {gamma:g}": figures.over_seeds(
                    lambda seed, r=regime, g=gamma, f=field: number(figures.regime(r, f"{g:g}", seed), f)
                )
                for gamma in regimes.GAMMAS
            }
        columns = [f"gamma {gamma:g}" for gamma in regimes.GAMMAS]
        chart = "bars" if field == "taught" else ""
        tables.append(Table(f"Where the distillation term matters: {name} (percent)", columns, rows, chart=chart))
    return tables


def _student_shows(figures: Figures) -> list[Shown]:
    def all_slices(row: str) -> float:
        return mean(number(figures.student(row, seed), "accuracy") for seed in figures.seeds)

    base, student, bound = all_slices("base"), all_slices(PER_SAMPLE), all_slices(students.CHAIN)
    gap = (student - base) / (bound - base) if bound > base else math.nan
    shown = [at_least(f"{PER_SAMPLE}: share of the gap from base to centralised closed, all slices", gap, GAP_BOUND)]
    for rival in students.FEDAVG:
        points = 100 * (student - all_slices(rival))
        shown.append(Shown(f"{PER_SAMPLE} above {rival}, all slices (points), above", points, 0.0, points > 0))
    return shown


def _few_step_shows(figures: Figures) -> list[Shown]:
    def accuracy(name: str, steps: int) -> float:
        return mean(number(figures.few(name, seed), str(steps), "accuracy") for seed in figures.seeds)

    teacher = accuracy(few_step.TEACHER, few_step.FULL_STEPS)
    teacher = teacher if teacher > 0 else math.nan
    shown = [
        at_least(f"{m}: accuracy at 4 steps / teachers at 32", accuracy(m, 4) / teacher, FOUR_STEP_BOUND)
        for m in few_step.METHODS
    ]
    ones = {method: accuracy(method, 1) for method in few_step.METHODS}
    best = max(ones, key=lambda method: -1.0 if math.isnan(ones[method]) else ones[method])
    what = f"best student at 1 step ({best}): accuracy / teachers at 32"
    return [*shown, at_least(what, ones[best] / teacher, ONE_STEP_BOUND)]


def _notes(figures: Figures) -> list[str]:
    notes = []
    notes += [_verdict(figures, regime) for regime in regimes.REGIMES]
    gains = [
        100 * (number(figures.regime(regimes.AS_IS, gamma, s), "accuracy") - _at_equal_seconds(figures, s))
        for gamma in ("0.5",)
        for s in figures.seeds
    ]
    gains = [gain for gain in gains if not math.isnan(gain)]
    if gains:
        sd = f" ± {statistics.stdev(gains):.1f}" if len(gains) > 1 else ""
        notes.append(f"gamma 0.5 against 0 at equal seconds: {statistics.mean(gains):+.1f}{sd} points")
    notes.append(
        "of the gammas 0.5 and 0.9 the better one is compared, over all prompts, paired by seed; a difference "
        "counts when it is larger than its own spread over seeds"
    )
    one_hot = "lambda by provenance asks one teacher a picture, so that sampled is the same as all"
    notes += [
        one_hot,
        "FID and KID: against held-out real digits (split judge), on the reference classifier's features",
    ]
    for (seed, name), facts in figures.found.items():
        if "failed" in facts:
            notes.append(f"seed {seed}: {name} was left out: {facts['failed']}")
        for teacher, why in (facts.get("left_out") or {}).items():
            notes.append(f"seed {seed}: {name}: {teacher} had lambda 0: {why}")
    return notes


def _verdict(figures: Figures, regime: str) -> str:
    def accuracy(gamma: str, seed: int) -> float:
        return number(figures.regime(regime, gamma, seed), "accuracy")

    gammas = [f"{gamma:g}" for gamma in regimes.GAMMAS]
    complete = [seed for seed in figures.seeds if not any(math.isnan(accuracy(gamma, seed)) for gamma in gammas)]
    return regimes.verdict(regime, {gamma: [accuracy(gamma, seed) for seed in complete] for gamma in gammas})


def _at_equal_seconds(figures: Figures, seed: int) -> float:
    return number(figures.regime(regimes.AS_IS, regimes.EQUAL_SECONDS, seed), "accuracy")
