"""`fedkd bench faults`: a federation of real processes with bad parties, beside the same one without them."""

from __future__ import annotations

import json
import math
import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from fedkd.cli.benchmarks.request import Request
from fedkd.cli.benchmarks.result import Result, Table, at_least, at_most

POINTS = 3.0
COLUMNS = ["taught", "known", "all", "seconds"]
# The honest: two edges with two users each. Then one edge each that is killed, sends NaNs, learns from random labels,
# with a user each, and a last user of the first edge who sends garbage.
HONEST = {"edges": 2, "users": 4}
ALL = {"edges": 5, "users": 8}
EDGE_OF = [0, 0, 1, 1, 2, 3, 4, 0]
KILLED, FAULTS = "edge-2", {"edge-3": "nan", "edge-4": "random_labels", "user-7": "garbage"}
FULL = [
    *("synthesis.personal_steps=80", "synthesis.samples=60", "finetune.steps=150", "distillation.steps=250"),
    *("distillation.replay=200", "distillation.save_every=20"),
]
QUICK = [
    *("synthesis.method=image_to_image", "synthesis.seeds_per_image=1", "synthesis.num_inference_steps=2"),
    *("finetune.steps=12", "finetune.batch_size=8", "distillation.steps=60", "distillation.batch_size=8"),
    *("distillation.replay=20", "distillation.save_every=10", "evaluation.samples_per_concept=1"),
]
LIMITS = ["federation.rounds=1", "federation.quorum=0.4", "federation.phase_timeout_s=1500", "federation.wait_s=60"]
PICTURES, FEW = 20, 9  # of each honest user, of each other one; the smallest share of the private digits has 29


@dataclass(frozen=True)
class Expected:
    """An event that the report and the audit log have to name: where, who, and a word of why."""

    what: str
    phase: str
    node: str
    report: str
    event: str  # of the audit log


EXPECTED = (
    Expected("the user who returned garbage", "synthesise", "user-7", "not Parquet", "refused"),
    Expected("the edge that was killed in fine-tuning", "finetune", KILLED, "left out", "left_out"),
    Expected("the adapter of NaNs", "finetune", "edge-3", "not finite", "refused"),
    Expected("the server that was killed in distillation", "distil", "server", "stopped here", "resumed"),
    Expected("the adapter trained on random labels", "distil", "edge-4", "lambda 0", "distrusted"),
)


def run(request: Request) -> Result:
    """Both federations, in `out`/faults; the one without bad parties is kept for the next time."""
    from fedkd.cli.benchmarks.faults_run import Drill, honest_folders, recipe_for

    home = (request.out / "faults").resolve()
    home.mkdir(parents=True, exist_ok=True)
    overrides = [*LIMITS, *(QUICK if request.quick else FULL), *request.overrides]
    counts = [PICTURES] * HONEST["users"] + [FEW] * (ALL["users"] - HONEST["users"])
    if request.quick:
        counts = [12] * HONEST["users"] + [4] * (ALL["users"] - HONEST["users"])
    folders = honest_folders(recipe_for("data", home, HONEST, overrides), home / "pictures", counts)
    clean, marred = (
        Drill(recipe_for(name, home, sizes, overrides), folders, EDGE_OF, request.say)
        for name, sizes in (("clean", HONEST), ("faults", ALL))
    )
    if not clean.finished():
        shutil.rmtree(clean.run, ignore_errors=True)
        clean.go()
    shutil.rmtree(marred.run, ignore_errors=True)
    marred.go(faults=FAULTS, kill_edge=KILLED, kill_server=True)
    return judged(request, clean, marred)


def judged(request: Request, clean: Any, marred: Any) -> Result:
    """The figures of both runs, and what the promises come to."""
    from fedkd.checkpoints.audit_chain import parsed, read_lines
    from fedkd.checkpoints.audit_check import verify_log

    reports = {"without bad parties": clean.report(), "with them": marred.report()}
    rows = {
        name: {
            **{
                column: [report["student"][key]]
                for column, key in (("taught",) * 2, ("known",) * 2, ("all", "accuracy"))
            },
            "seconds": [drill.seconds()],
        }
        for (name, report), drill in zip(reports.items(), (clean, marred), strict=True)
    }
    table = Table("Prompt accuracy (percent) of the student", COLUMNS, rows, plain_columns=["seconds"])
    result = Result(request.name, request.command, [marred.recipe.run.seed], [table])
    report, log = reports["with them"], parsed(read_lines(marred.run))
    expected = EXPECTED[:-1] if request.quick else EXPECTED  # a few steps on random labels spoil nothing
    told = [each for each in expected if each in found_in(report["events"], expected)]
    logged = [
        each
        for each in expected
        if any(line["event"] == each.event and line.get("node", "server") == each.node for line in log)
    ]
    gave = [(line["round"], line["node"]) for line in log if line["event"] == "gave"]
    result.shows += [
        at_least("rounds that the federation with bad parties finished", len(report["rounds"]), 1),
        at_least("events that the report names", len(told), len(expected)),
        at_least("events that the audit log names", len(logged), len(expected)),
        at_most("lines of the audit log that do not hold", float(bool(verify_log(marred.run).problem)), 0),
        at_least("changed, removed or inserted lines that are found, of 3", tampered(marred.run), 3),
        at_most("answers that were asked for again after the server was killed", len(gave) - len(set(gave)), 0),
    ]
    if not request.quick:
        lost = 100 * (rows["without bad parties"]["all"][0] - rows["with them"]["all"][0])
        weights = report["rounds"][-1]["student"]["teacher_weights"]
        result.shows += [
            at_most("points of accuracy lost to the bad parties", lost, POINTS),
            at_most("lambda of the adapter trained on random labels", weights.get("edge-4", math.nan), 0),
        ]
    result.notes += [f"round {e['round']}, {e['phase']}: {e['node']}: {e['what']}" for e in report["events"]]
    return result


def found_in(events: list[dict[str, Any]], expected: tuple[Expected, ...]) -> list[Expected]:
    """Which of the expected events a report names."""
    return [
        each
        for each in expected
        if any((e["phase"], e["node"]) == (each.phase, each.node) and each.report in e["what"] for e in events)
    ]


def tampered(run: Path) -> int:
    """How many of three tampered copies of a run's audit log `fedkd audit verify` finds."""
    from fedkd.checkpoints.audit_chain import HEAD_NAME, LOG_NAME
    from fedkd.checkpoints.audit_check import verify_log

    lines, found = (run / LOG_NAME).read_bytes().splitlines(keepends=True), 0
    middle = len(lines) // 2
    spoilt = lines[middle].replace(b'"round":1', b'"round":2')
    forged = json.dumps({"n": middle + 1, "event": "gave", "node": "nobody"}).encode() + b"\n"
    for now in (
        [*lines[:middle], spoilt, *lines[middle + 1 :]],
        lines[:middle] + lines[middle + 1 :],
        [*lines[:middle], forged, *lines[middle:]],
    ):
        copy = run / "tampered"
        copy.mkdir(exist_ok=True)
        (copy / LOG_NAME).write_bytes(b"".join(now))
        shutil.copyfile(run / HEAD_NAME, copy / HEAD_NAME)
        found += f"line {middle + 1} " in verify_log(copy).problem
        shutil.rmtree(copy)
    return found
