"""The report of a distillation job: report.json, and one self-contained page with the student beside its teachers."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from markupsafe import Markup

from fedkd.evaluation.charts import bar_chart, line_chart
from fedkd.evaluation.report import environment_of, recipe_text, write_report
from fedkd.evaluation.steps import STUDENT, TEACHER, UNGUIDED
from fedkd.evaluation.templates.distillation_page import DISTILLATION_PAGE

Row = Mapping[str, Any]


def write_distillation_report(report: dict[str, Any], out_dir: Path) -> Path:
    """Write `out_dir`/report.json and report.html, each atomically; returns the page."""
    return write_report(report, out_dir, render_distillation)


def render_distillation(report: Mapping[str, Any], out_dir: Path) -> str:
    """The page as HTML; picture paths are relative to `out_dir`."""
    rows = report.get("steps") or []
    return (
        environment_of(DISTILLATION_PAGE, out_dir)
        .get_template("report.html")
        .render(
            r=report,
            teachers=report.get("teachers") or [],
            table=steps_table(rows),
            best=best_row(rows),
            reference=reference_row(rows),
            chart=Markup(bar_chart(_series(rows), "Prompt accuracy by number of steps")),
            losses=[(title, Markup(chart)) for title, chart in _loss_charts(report.get("loss") or {})],
            recipe_text=recipe_text(report.get("recipe")),
        )
    )


def steps_table(rows: list[Row]) -> list[dict[str, Any]]:
    """A row a step count: {"steps", "student", "teacher", "unguided": that contender's row or {}, "kept"}.

    `kept` is the student's accuracy as a share of the teacher's at most steps; None without the two.
    """
    scored = [row for row in rows if row.get("accuracy") is not None]
    reference = reference_row(rows)
    table = []
    for steps in sorted({row["steps"] for row in scored}):
        at = {row["model"]: row for row in scored if row["steps"] == steps}
        student = at.get(STUDENT, {})
        kept = student["accuracy"] / reference["accuracy"] if student and reference and reference["accuracy"] else None
        others = {"teacher": at.get(TEACHER, {}), "unguided": at.get(UNGUIDED, {})}
        table.append({"steps": steps, "student": student, **others, "kept": kept})
    return table


def reference_row(rows: list[Row]) -> Row | None:
    """The teacher at most steps."""
    teachers = [row for row in rows if row["model"] == TEACHER and row.get("accuracy") is not None]
    return max(teachers, key=lambda row: row["steps"], default=None)


def best_row(rows: list[Row]) -> Row | None:
    """The student at its best among the step counts that it was made for, else among all."""
    students = [row for row in rows if row["model"] == STUDENT and row.get("accuracy") is not None]
    made = [row for row in students if row.get("made_for")]
    return max(made or students, key=lambda row: (row["accuracy"], -row["steps"]), default=None)


def _series(rows: list[Row]) -> dict[str, dict[str, float | None]]:
    return {
        model: {str(line["steps"]): line[key].get("accuracy") for line in steps_table(rows)}
        for model, key in ((TEACHER, "teacher"), (UNGUIDED, "unguided"), (STUDENT, "student"))
        if any(row["model"] == model for row in rows)
    }


def _loss_charts(curves: Mapping[str, list[float | None]]) -> list[tuple[str, str]]:
    """One chart a phase ("4 steps: loss" is of the phase "4 steps"), or one for all."""
    phases: dict[str, dict[str, list[float | None]]] = {}
    for name, values in curves.items():
        phase, _, loss = name.rpartition(": ")
        phases.setdefault(phase or "Training", {})[loss] = values
    charts = [(phase, line_chart(series, f"Losses, {phase}")) for phase, series in phases.items()]
    return [(phase, chart) for phase, chart in charts if chart]
