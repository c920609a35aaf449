"""A run's report turned into the rows and charts of its page: quality, losses, teachers."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from fedkd.evaluation.charts import line_chart
from fedkd.evaluation.units import size, small_percent

SCORES = ("accuracy", "known", "taught")
COST = "checkpoint_bytes"
Report = Mapping[str, Any]


def models(report: Report) -> list[tuple[str, Report]]:
    """Base, each edge, the students of earlier rounds and the last one, as far as they were scored."""
    edges = [(str(edge.get("name", "edge")), edge) for edge in report.get("edges") or []]
    taught = [item for item in report.get("rounds") or [] if item.get("student")]
    earlier = [(f"student, round {item.get('round')}", item["student"]) for item in taught[:-1]]
    named = [("base", report.get("base")), *edges, *earlier, ("student", report.get("student"))]
    return [(name, model) for name, model in named if model]


def concepts(report: Report) -> list[str]:
    """Every concept's name, known ones first where the recipe says which they are."""
    scored = list(dict.fromkeys(name for _, model in models(report) for name in model.get("concepts") or {}))
    prompts = (report.get("recipe") or {}).get("prompts") or {}
    taught = set(prompts.get("taught") or [])
    return [name for name in scored if name not in taught] + [name for name in scored if name in taught]


def score_columns(report: Report) -> list[str]:
    """The headings of the table of quality."""
    return [*SCORES, *concepts(report)]


def score_rows(report: Report) -> list[tuple[str, list[Any]]]:
    """(model, shares 0..1 in the order of `score_columns`)."""
    names = concepts(report)
    return [
        (name, [model.get(s) for s in SCORES] + [(model.get("concepts") or {}).get(c) for c in names])
        for name, model in models(report)
    ]


def concept_series(report: Report) -> dict[str, dict[str, float | None]]:
    """{model: {concept: share}} of the models whose concepts were scored; earlier students are left to the table."""
    names = concepts(report)
    return {
        name: {concept: (model.get("concepts") or {}).get(concept) for concept in names}
        for name, model in models(report)
        if model.get("concepts") and not name.startswith("student, ")
    }


def round_series(report: Report) -> dict[str, list[float | None]]:
    """{score: the base's, then each round's student's}; {} with fewer than two rounds."""
    taught = [item["student"] for item in report.get("rounds") or [] if item.get("student")]
    if len(taught) < 2:
        return {}
    return {score: [(model or {}).get(score) for model in (report.get("base"), *taught)] for score in SCORES}


def loss_charts(report: Report, rounds: list[Report]) -> list[tuple[str, str]]:
    """One chart for the edges' fine-tuning and one for the student's distillation, a round each."""
    charts = []
    for item in rounds or [report]:
        suffix = f", round {item['round']}" if "round" in item else ""
        edges = {str(e.get("name", "edge")): e.get("loss") or [] for e in item.get("edges") or []}
        loss = (item.get("student") or {}).get("loss") or {}
        student = loss if isinstance(loss, Mapping) else {"loss": loss}
        charts.append((f"Edges, fine-tuning{suffix}", line_chart(edges, f"Loss of the edges{suffix}")))
        charts.append((f"Student, distillation{suffix}", line_chart(student, f"Loss of the student{suffix}")))
    return charts


def teacher_rows(rounds: list[Report]) -> list[tuple[Any, str, Any, str]]:
    """(round, teacher, mean lambda, why it is 0 or '') of each round that has a student."""
    rows = []
    for item in rounds:
        student = item.get("student") or {}
        weights, why = student.get("teacher_weights") or {}, student.get("left_out") or {}
        rows += [(item.get("round"), name, weights.get(name), str(why.get(name, ""))) for name in {**weights, **why}]
    return rows


def left_out(rounds: list[Report]) -> list[tuple[Any, Any, Any, Any]]:
    """(round, phase, node, reason) of every node that a phase went on without."""
    return [
        (item.get("round"), phase.get("name"), node.get("node"), node.get("reason"))
        for item in rounds
        for phase in item.get("phases") or []
        for node in phase.get("left_out") or []
    ]


def checkpoint_words(cost: Any) -> str:
    """What a round's checkpoints to nodes cost, of what full models would have; '' when no node took one."""
    if not isinstance(cost, Mapping) or not cost.get("models"):
        return ""
    taken, nodes = cost["models"], cost["nodes"]
    via = {"registry": ", pulled from the registry", "messages": ", in Flower's messages"}.get(str(cost.get("via")), "")
    return (
        f"checkpoints to nodes: {size(cost['moved'])} moved of {size(cost['full'])} "
        f"({nodes} node{'s' if nodes != 1 else ''}, {taken} × {size(cost['full'] / taken)}), "
        f"{small_percent(cost['share'])}{via}"
    )


def totals(rounds: list[Report]) -> dict[str, float]:
    """Bytes of all rounds: `up` and `down` in messages, `moved` of `full` to give nodes their checkpoints."""
    wanted = {"up": "bytes", "down": "bytes", "moved": COST, "full": COST}
    return {key: sum((item.get(part) or {}).get(key) or 0 for item in rounds) for key, part in wanted.items()}
