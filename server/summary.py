"""The run's report, composed from what its phases left."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from fedkd import __version__
from fedkd.checkpoints.manifest import CheckpointError
from fedkd.checkpoints.registry import Registry
from fedkd.recipe import Recipe
from server.delivery import delivered
from server.events import events
from server.provenance import audit_state, family
from server.state import PHASES, RunState

SCORES = ("accuracy", "known", "taught", "concepts")


def round_report(state: RunState, number: int) -> dict[str, Any] | None:
    """One round of the report, with whatever phases it finished; None when it was never begun."""
    done = {phase: facts for phase in PHASES if (facts := state.finished(number, phase)) is not None}
    if not done:
        return None
    stopped = state.finished(number, "stopped")
    phases = [facts["entry"] for facts in done.values()]
    if stopped is not None and stopped["entry"]["name"] not in done:
        phases.append(stopped["entry"])
    report: dict[str, Any] = {
        "round": number,
        "bytes": {way: sum(phase["bytes"][way] for phase in phases) for way in ("up", "down")},
        "checkpoint_bytes": delivered(state, number),
        "phases": phases,
        "users": done.get("synthesise", {}).get("users", []),
        "edges": done.get("finetune", {}).get("edges", []),
    }
    if "publish" in done:
        distilled, published = done["distil"], done["publish"]
        report["student"] = {
            **{key: published["metrics"].get(key) for key in SCORES},
            "loss": distilled["loss"],
            "sampling": distilled["sampling"],
            "teacher_weights": distilled["teacher_weights"],
            "left_out": distilled["left_out"],
            "published_as": published["alias"],
        }
        report["checkpoint"] = published["checkpoint"]
    return report


def compose(recipe: Recipe, run: Path, registry: Path) -> dict[str, Any]:
    """The report so far: base, rounds, edges and student of the last round, checkpoint that is served."""
    from omegaconf import OmegaConf

    state = RunState(run)
    base = state.finished(0, "base") or {}
    rounds = [r for n in range(1, recipe.federation.rounds + 1) if (r := round_report(state, n)) is not None]
    report: dict[str, Any] = {
        "name": recipe.run.name,
        "description": recipe.description,
        "fedkd_version": __version__,
        "recipe": OmegaConf.to_container(OmegaConf.structured(recipe)),
        "rounds": rounds,
        "edges": next((r["edges"] for r in reversed(rounds) if r["edges"]), []),
        "seeds": {"run": recipe.run.seed},
        "events": events(state, recipe.federation.rounds),
        "audit": audit_state(run),
        "run": recipe.run.name if run.parent.name == "runs" else str(run),
    }
    if "metrics" in base:
        report["base"] = {key: base["metrics"].get(key) for key in SCORES}
    taught = [r for r in rounds if "student" in r]
    if taught:
        report["student"] = {key: taught[-1]["student"][key] for key in SCORES}
    report["concepts"] = {
        kind: {who: report[who][kind] for who in ("base", "student") if who in report} for kind in ("known", "taught")
    }
    served = [r["checkpoint"] for r in taught if r["student"]["published_as"] == "latest"]
    reference = served[-1] if served else base.get("checkpoint", "")
    if reference:
        store = Registry(registry)
        report["lineage"] = family(store, [base["checkpoint"], *(r["checkpoint"] for r in taught)])
        try:
            manifest, path = store.manifest(reference), store.resolve(reference)
        except CheckpointError as error:
            report["checkpoint"] = {"name": reference, "error": str(error)}
        else:
            shown = path.relative_to(run) if path.is_relative_to(run) else path
            facts = {"name": manifest.name, "version": manifest.version, "digest": manifest.digest}
            report["checkpoint"] = {**facts, "path": str(shown)}
    return report
