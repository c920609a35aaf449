"""The report of a run: report.json for programs, and one self-contained page for people."""

from __future__ import annotations

import base64
import json
import math
import os
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from jinja2 import DictLoader, Environment
from markupsafe import Markup

from fedkd.evaluation.charts import bar_chart, line_chart
from fedkd.evaluation.templates.page import PAGE
from fedkd.evaluation.templates.style import STYLE

MIME = {".png": "image/png", ".jpg": "image/jpeg", ".jpeg": "image/jpeg", ".webp": "image/webp"}
HIDDEN = "(hidden)"
SCORES = ("accuracy", "known", "taught")
COST = "checkpoint_bytes"


def write_report(
    report: dict[str, Any], out_dir: Path, page_of: Callable[[Mapping[str, Any], Path], str] | None = None
) -> Path:
    """Write `out_dir`/report.json and report.html (by `page_of`, else `render`), each atomically; returns the page.

    Any part of `report` may be missing: the page shows what there is. Numbers that are not finite become
    null, and a serving token is hidden.
    """
    out_dir = Path(out_dir)
    out_dir.mkdir(parents=True, exist_ok=True)
    safe = _clean(report)
    _write(out_dir / "report.json", json.dumps(safe, indent=2, ensure_ascii=False, allow_nan=False) + "\n")
    page = out_dir / "report.html"
    _write(page, (page_of or render)(safe, out_dir))
    return page


def render(report: Mapping[str, Any], out_dir: Path) -> str:
    """The page as HTML; picture paths are relative to `out_dir`, and pictures outside it are left out."""
    rounds = report.get("rounds") or []
    return (
        environment_of(PAGE, out_dir)
        .get_template("report.html")
        .render(
            r=report,
            rounds=rounds,
            scores=_score_rows(report),
            score_columns=_score_columns(report),
            accuracy_chart=Markup(bar_chart(_concept_series(report), "Prompt accuracy for each concept")),
            losses=[(title, Markup(chart)) for title, chart in _loss_charts(report, rounds) if chart],
            left_out=_left_out(rounds),
            totals=_totals(rounds),
            deliveries=[(item.get("round"), words) for item in rounds if (words := checkpoint_words(item.get(COST)))],
            recipe_text=recipe_text(report.get("recipe")),
        )
    )


def environment_of(page: str, out_dir: Path) -> Environment:
    """Jinja with `page` as report.html, the style sheet, the unit filters, and `picture(path)`."""
    environment = Environment(
        loader=DictLoader({"report.html": page, "style.css": STYLE}),
        autoescape=True,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters.update(percent=percent, size=size, duration=duration, energy=energy, number=number)
    environment.globals["picture"] = lambda path: embed(path, out_dir)
    return environment


def embed(path: Any, out_dir: Path) -> str:
    """A picture as a data URL; '' when it is missing, not a picture, or outside `out_dir`."""
    if not isinstance(path, str) or not path:
        return ""
    file = (out_dir / path).resolve()
    mime = MIME.get(file.suffix.lower())
    if not mime or not file.is_relative_to(out_dir.resolve()) or not file.is_file():
        return ""
    return f"data:{mime};base64,{base64.b64encode(file.read_bytes()).decode()}"


def percent(share: Any) -> str:
    """0.873 as '87%'; a dash when there is no figure."""
    return "–" if not _is_number(share) else f"{100 * share:.0f}%"


def size(size_bytes: Any) -> str:
    """Bytes with a decimal unit."""
    if not _is_number(size_bytes):
        return "–"
    for unit in ("B", "kB", "MB", "GB"):
        if abs(size_bytes) < 999.5 or unit == "GB":
            return f"{size_bytes:.0f} {unit}" if unit == "B" else f"{_three_digits(size_bytes)} {unit}"
        size_bytes /= 1000
    return ""


def duration(seconds: Any) -> str:
    """Seconds with the unit a reader expects."""
    if not _is_number(seconds):
        return "–"
    if seconds < 1:
        return f"{_three_digits(1000 * seconds)} ms"
    if seconds < 100:
        return f"{seconds:.3g} s"
    minutes, rest = divmod(round(seconds), 60)
    return f"{minutes} min {rest} s" if minutes < 60 else f"{minutes // 60} h {minutes % 60} min"


def energy(joules: Any) -> str:
    """Joules with an SI prefix."""
    if not _is_number(joules):
        return "–"
    for limit, factor, unit in ((1e-3, 1e6, "µJ"), (1.0, 1e3, "mJ"), (1e3, 1.0, "J")):
        if abs(joules) < limit:
            return f"{_three_digits(joules * factor)} {unit}"
    return f"{_three_digits(joules / 1e3)} kJ"


def number(value: Any) -> str:
    """Counts as they are, measures with three digits."""
    if not _is_number(value):
        return "–" if value is None else str(value)
    return f"{value:,}" if isinstance(value, int) else _three_digits(value)


def _three_digits(value: float) -> str:
    """Three significant digits, and never an exponent for what is 1000 or more."""
    return f"{value:.3g}" if abs(value) < 999.5 else f"{value:.0f}"


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)


def _clean(value: Any, key: str = "") -> Any:
    """Plain JSON values: no numbers that are not finite, no token, no numpy scalars."""
    if isinstance(value, Mapping):
        return {str(name): _clean(item, str(name)) for name, item in value.items()}
    if isinstance(value, list | tuple):
        return [_clean(item) for item in value]
    if key == "token" and value:
        return HIDDEN
    if hasattr(value, "item") and not isinstance(value, str | bytes):
        value = value.item()
    if isinstance(value, Path):
        return str(value)
    return None if isinstance(value, float) and not math.isfinite(value) else value


def _write(path: Path, text: str) -> None:
    part = path.with_name(path.name + ".part")
    part.write_text(text, encoding="utf-8")
    os.replace(part, path)


def _models(report: Mapping[str, Any]) -> list[tuple[str, Mapping[str, Any]]]:
    """Base, each edge and the student, as far as they were scored."""
    edges = [(str(edge.get("name", "edge")), edge) for edge in report.get("edges") or []]
    named = [("base", report.get("base")), *edges, ("student", report.get("student"))]
    return [(name, model) for name, model in named if model]


def _concepts(report: Mapping[str, Any]) -> list[str]:
    """Every concept's name, known ones first where the recipe says which they are."""
    scored = list(dict.fromkeys(name for _, model in _models(report) for name in model.get("concepts") or {}))
    prompts = (report.get("recipe") or {}).get("prompts") or {}
    taught = set(prompts.get("taught") or [])
    return [name for name in scored if name not in taught] + [name for name in scored if name in taught]


def _score_columns(report: Mapping[str, Any]) -> list[str]:
    return [*SCORES, *_concepts(report)]


def _score_rows(report: Mapping[str, Any]) -> list[tuple[str, list[Any]]]:
    concepts = _concepts(report)
    return [
        (name, [model.get(s) for s in SCORES] + [(model.get("concepts") or {}).get(c) for c in concepts])
        for name, model in _models(report)
    ]


def _concept_series(report: Mapping[str, Any]) -> dict[str, dict[str, float | None]]:
    concepts = _concepts(report)
    return {
        name: {concept: (model.get("concepts") or {}).get(concept) for concept in concepts}
        for name, model in _models(report)
        if model.get("concepts")
    }


def _loss_charts(report: Mapping[str, Any], rounds: list[Mapping[str, Any]]) -> list[tuple[str, str]]:
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


def _left_out(rounds: list[Mapping[str, Any]]) -> list[tuple[Any, Any, Any, Any]]:
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
    models, nodes = cost["models"], cost["nodes"]
    via = {"registry": ", pulled from the registry", "messages": ", in Flower's messages"}.get(str(cost.get("via")), "")
    return (
        f"checkpoints to nodes: {size(cost['moved'])} moved of {size(cost['full'])} "
        f"({nodes} node{'s' if nodes != 1 else ''}, {models} × {size(cost['full'] / models)}), "
        f"{_small_percent(cost['share'])}{via}"
    )


def _small_percent(share: float) -> str:
    """A share as a percentage, small ones with a digit more."""
    return percent(share) if share >= 0.1 or share == 0 else f"{100 * share:.2g}%"


def _totals(rounds: list[Mapping[str, Any]]) -> dict[str, float]:
    wanted = {"up": "bytes", "down": "bytes", "moved": COST, "full": COST}
    return {key: sum((item.get(part) or {}).get(key) or 0 for item in rounds) for key, part in wanted.items()}


def recipe_text(recipe: Any) -> str:
    """A report's recipe as YAML; '' without one."""
    if not recipe:
        return ""
    import yaml

    return str(yaml.safe_dump(recipe, sort_keys=False, allow_unicode=True))
