"""What each finished round came to, sent to the recipe's tracker (TensorBoard, Trackio or Weights & Biases)."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from statistics import fmean
from typing import Any

from fedkd.distillation.jobs.tracking import Tracker
from server.state import RunState
from server.summary import SCORES, round_report

TRACKED = "tracked"  # of a round's state: its figures have been sent


class RoundTracker:
    """Sends the figures of finished rounds, each once in the life of a run, the base's as step 0."""

    def __init__(self, state: RunState, tracker: Tracker) -> None:
        self.state, self.tracker = state, tracker

    def sent(self, number: int) -> None:
        """Send what is finished up to round `number` and was not sent before."""
        for step in range(number + 1):
            if self.state.finished(step, TRACKED) is None:
                values = figures(round_report(self.state, step) or {}) if step else self.base()
                self.tracker.log(values, step)
                self.state.finish(step, TRACKED, {"values": values})

    def base(self) -> dict[str, float]:
        """The scores of the model before the first round."""
        return scores("student", (self.state.finished(0, "base") or {}).get("metrics") or {})


def figures(report: Mapping[str, Any]) -> dict[str, float]:
    """A round of a run's report as scalars: accuracies (0..1), last losses, bytes, counts, seconds, largest epsilon."""
    student, edges, users = report.get("student") or {}, report.get("edges") or [], report.get("users") or []
    phases = report.get("phases") or []
    losses = {f"student/loss/{name}": curve[-1] for name, curve in (student.get("loss") or {}).items() if curve}
    values = {
        **scores("student", student),
        **losses,
        **mean("edges/loss", (edge["loss"][-1] for edge in edges if edge.get("loss"))),
        **mean("edges/accuracy", (edge.get("accuracy") for edge in edges)),
        "bytes/up": report["bytes"]["up"],
        "bytes/down": report["bytes"]["down"],
        "bytes/registry": sum(line["registry"] for phase in phases for line in phase.get("ledger") or []),
        "bytes/edges": sum(line.get("edge", 0) for phase in phases for line in phase.get("ledger") or []),
        "bytes/checkpoints": report["checkpoint_bytes"]["moved"],
        "nodes/left_out": sum(len(phase["left_out"]) for phase in phases),
        "users/kept": sum(user.get("kept") or 0 for user in users),
        "users/refused": sum(user.get("refused") or 0 for user in users),
        "seconds": sum(phase["seconds"] for phase in phases),
    }
    spent = [edge["privacy"]["epsilon"] for edge in edges if (edge.get("privacy") or {}).get("epsilon") is not None]
    return {**values, **({"privacy/epsilon": max(spent)} if spent else {})}


def scores(who: str, model: Mapping[str, Any]) -> dict[str, float]:
    """Prompt accuracy in all, of known and taught concepts, and of each concept, as far as it was judged."""
    single = {f"{who}/{key}": model.get(key) for key in SCORES if key != "concepts"}
    concepts = {f"{who}/concepts/{name}": value for name, value in (model.get("concepts") or {}).items()}
    return {key: float(value) for key, value in {**single, **concepts}.items() if value is not None}


def mean(name: str, values: Iterable[float | None]) -> dict[str, float]:
    """The mean of what is known, by name; {} when nothing is."""
    known = [value for value in values if value is not None]
    return {name: fmean(known)} if known else {}
