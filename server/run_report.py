"""The report of a run from what its folder holds: finished, running, stopped or killed."""

from __future__ import annotations

import json
from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from fedkd.evaluation.report import write_report
from fedkd.recipe import Recipe, RecipeError, load_recipe, registry_dir
from server.events import under_way
from server.state import PHASES, RunState
from server.summary import compose

KEPT = ("started", "command", "wall_seconds", "split", "pictures", "pictures_of")  # only the commands know these
Progress = Callable[[str], None]


def recipe_of_run(run: Path) -> tuple[Recipe, Path]:
    """The recipe that was saved with a run, and its registry; RecipeError when the folder holds no run of nodes."""
    path = run / "recipe.yaml"
    if not path.is_file():
        raise RecipeError(f"'{run}' has no recipe.yaml; give the folder of a run, e.g. runs/quickstart")
    recipe = load_recipe(str(path))
    if recipe.kind != "federation":
        raise RecipeError(f"'{run}' is a run of kind {recipe.kind}, which wrote its report.html itself")
    return recipe, registry_dir(recipe) if recipe.run.registry else run / "registry"


def write_run_report(run: Path, *, draw: Progress | None = None, **facts: Any) -> Path:
    """Write RUN/report.json and RUN/report.html from RUN; `facts` are added, and those of an earlier report are kept.

    With `draw` pictures of base and student are drawn when there are none of this student yet; it is told so.
    """
    recipe, registry = recipe_of_run(run)
    report = {**kept(run), **compose(recipe, run, registry), "status": status(run, recipe), **facts}
    students = [item["checkpoint"] for item in report["rounds"] if "checkpoint" in item]
    student = students[-1] if students else ""
    if report.get("pictures_of", student) != student:
        report.pop("pictures", None)
    if draw is not None and student and not report.get("pictures"):
        draw(student)
        report["pictures"] = pictures(recipe, run, registry, student)
    if report.get("pictures"):
        report["pictures_of"] = student
    return write_report(report, run)


def kept(run: Path) -> dict[str, Any]:
    """What an earlier report of the run knows that its state does not."""
    path = run / "report.json"
    try:
        earlier = json.loads(path.read_text(encoding="utf-8")) if path.is_file() else {}
    except ValueError:
        return {}
    return {key: earlier[key] for key in KEPT if earlier.get(key) is not None}


def pictures(recipe: Recipe, run: Path, registry: Path, student: str) -> list[dict[str, Any]]:
    """Base and student at the same prompts and seeds; [] when one of them is not in the registry any more."""
    from fedkd.checkpoints.manifest import CheckpointError
    from fedkd.checkpoints.registry import Registry
    from server.showcase import before_and_after  # torch and diffusers: most reports are written without

    store, base = Registry(registry), (RunState(run).finished(0, "base") or {})["checkpoint"]
    try:
        paths = str(store.resolve(base)), str(store.resolve(student))
    except CheckpointError:
        return []
    return before_and_after(*paths, recipe, run, sampling=store.manifest(student).sampling)


def status(run: Path, recipe: Recipe) -> dict[str, Any]:
    """{"state": finished | stopped | unfinished, "round", "phase", "why", "last"}: where the run is.

    A run that was killed and one that is under way look alike from here: `last` (UTC) is when it last said something.
    """
    state, rounds = RunState(run), recipe.federation.rounds
    number, phase = under_way(state, rounds)
    if state.finished(rounds, PHASES[-1]) is not None:
        return {"state": "finished"}
    log = run / "progress.jsonl"
    facts: dict[str, Any] = {"state": "unfinished", "round": number, "phase": phase, "last": None}
    if log.is_file():
        facts["last"] = datetime.fromtimestamp(log.stat().st_mtime, UTC).isoformat(sep=" ", timespec="seconds")
    error = run / "error.json"
    if error.is_file():
        facts |= {"state": "stopped", "why": json.loads(error.read_text(encoding="utf-8"))["error"]}
    return facts
