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
from fedkd.evaluation.report_ledgers import (
    audit_columns,
    audits,
    budgets,
    bytes_by_entry,
    bytes_by_node,
    bytes_by_phase,
    privacy_summary,
)
from fedkd.evaluation.report_rows import (
    COST,
    checkpoint_words,
    concept_series,
    left_out,
    loss_charts,
    round_series,
    score_columns,
    score_rows,
    teacher_rows,
    totals,
)
from fedkd.evaluation.templates.page import PAGE
from fedkd.evaluation.templates.sections import SECTIONS
from fedkd.evaluation.templates.style import STYLE
from fedkd.evaluation.units import duration, energy, number, percent, size

MIME = {".png": "image/png", ".jpg": "image/jpeg", ".jpeg": "image/jpeg", ".webp": "image/webp"}
HIDDEN = "(hidden)"
SECRETS = ("token", "peer_token")


def write_report(
    report: dict[str, Any], out_dir: Path, page_of: Callable[[Mapping[str, Any], Path], str] | None = None
) -> Path:
    """Write `out_dir`/report.json and report.html (by `page_of`, else `render`), each atomically; returns the page.

    Any part of `report` may be missing: the page shows what there is. Numbers that are not finite become
    null, and serving tokens are hidden.
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
    sent, users = bytes_by_phase(rounds), audits(rounds)
    top = max((value or 0 for values in sent.values() for value in values.values()), default=0) or 1
    nodes, more_nodes = bytes_by_node(rounds)
    progress = line_chart(round_series(report), "Prompt accuracy after each round", ("base", "last round"))
    return (
        environment_of(PAGE, out_dir)
        .get_template("report.html")
        .render(
            r=report,
            rounds=rounds,
            scores=score_rows(report),
            score_columns=score_columns(report),
            accuracy_chart=Markup(bar_chart(concept_series(report), "Prompt accuracy for each concept")),
            rounds_chart=Markup(progress),
            losses=[(title, Markup(chart)) for title, chart in loss_charts(report, rounds) if chart],
            teachers=teacher_rows(rounds),
            left_out=left_out(rounds),
            totals=totals(rounds),
            deliveries=[(item.get("round"), words) for item in rounds if (words := checkpoint_words(item.get(COST)))],
            bytes_chart=Markup(bar_chart(sent, "Bytes of each phase", top=top, words=size)),
            nodes=nodes,
            more_nodes=more_nodes,
            entries=bytes_by_entry(rounds),
            users=users,
            user_columns=audit_columns(users),
            privacy=privacy_summary(users),
            budgets=budgets(rounds),
            recipe_text=recipe_text(report.get("recipe")),
        )
    )


def environment_of(page: str, out_dir: Path) -> Environment:
    """Jinja with `page` as report.html, the style sheet, the unit filters, and `picture(path)`."""
    environment = Environment(
        loader=DictLoader({"report.html": page, "style.css": STYLE, **SECTIONS}),
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


def _clean(value: Any, key: str = "") -> Any:
    """Plain JSON values: no numbers that are not finite, no token, no numpy scalars."""
    if isinstance(value, Mapping):
        return {str(name): _clean(item, str(name)) for name, item in value.items()}
    if isinstance(value, list | tuple):
        return [_clean(item) for item in value]
    if key in SECRETS and value:
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


def recipe_text(recipe: Any) -> str:
    """A report's recipe as YAML; '' without one."""
    if not recipe:
        return ""
    import yaml

    return str(yaml.safe_dump(recipe, sort_keys=False, allow_unicode=True))
