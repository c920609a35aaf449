"""`fedkd bench soak`: an edge for half an hour among devices that vanish, new versions, wrong tokens, then junk."""

from __future__ import annotations

import asyncio
import shutil
import tempfile
import threading
import time
from collections import Counter
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from fedkd.cli.benchmarks.request import Request
from fedkd.cli.benchmarks.result import Result, Shown, Table, at_least, at_most

if TYPE_CHECKING:
    from fedkd.cli.benchmarks.serving_options import SoakOptions
    from fedkd.cli.benchmarks.soak_bystander import Bystander
    from fedkd.cli.benchmarks.soak_edge import SoakEdge
    from fedkd.cli.benchmarks.soak_junk import JunkTally
    from fedkd.cli.benchmarks.soak_memory import MemoryWatch
    from fedkd.cli.benchmarks.soak_reference import References
    from fedkd.cli.benchmarks.soak_traffic import Tally

MEMORY_BOUND = 5.0
QUICK = {"minutes": 1.0, "swaps": 3, "junk": 300, "lifetime_s": 5.0}
SETTLE_S = 4.0  # beside the sessions' lifetime: sweeps, retired versions, closed connections
SHOWN = 5
ENOUGH = 0.9  # of the shares that were asked for: each user does so evenly, beginning anywhere


@dataclass(frozen=True)
class Left:
    """What the edge still had in hand once nobody asked any more."""

    sessions: float
    retired: float
    engine: float
    alive: bool


def run(request: Request) -> Result:
    """Traffic with swaps, rest, junk, rest; see SoakOptions. NAME.png has the memory over time."""
    from fedkd.cli.benchmarks.serving_options import SoakOptions, read_options
    from fedkd.cli.benchmarks.soak_bystander import HOLDER
    from fedkd.cli.benchmarks.soak_edge import soaked_edge
    from fedkd.cli.benchmarks.soak_junk import HOLDER as JUNK_HOLDER
    from fedkd.cli.benchmarks.soak_junk import check_schemathesis
    from fedkd.cli.benchmarks.soak_memory import MemoryWatch, draw
    from fedkd.cli.benchmarks.soak_reference import References
    from fedkd.cli.benchmarks.soak_traffic import Tally

    options = read_options(request.overrides, SoakOptions(**(QUICK if request.quick else {})))  # type: ignore[arg-type]
    if options.junk:
        check_schemathesis()
    scratch = Path(tempfile.mkdtemp(prefix="fedkd-soak-"))
    result = Result(request.name, request.command, [options.seed], [])
    try:
        holders = [*(f"user-{place}" for place in range(options.users)), HOLDER, JUNK_HOLDER]
        with soaked_edge(scratch, holders, swaps=options.swaps, lifetime_s=options.lifetime_s) as edge:
            references, tally = References(edge.folders.values()), Tally()
            with MemoryWatch(edge.process.pid, lambda: edge.metrics()["fedkd_open_sessions"]) as watch:
                spans: dict[str, tuple[float, float]] = {}
                if options.minutes:
                    spans["traffic"] = soak(edge, references, tally, watch, options, request)
                    add_soak(result, options, tally, edge, watch, spans["traffic"], rest(edge, options))
                if options.junk:
                    found, bystander, spans["junk"] = junked(edge, references, watch, options, request)
                    add_junk(result, found, bystander, watch, spans["junk"], rest(edge, options))
            request.out.mkdir(parents=True, exist_ok=True)
            draw(watch, request.out / f"{request.name}.png", [(*_warm(span), name) for name, span in spans.items()])
        result.notes.append(f"memory over time: {request.name}.png; what the edge said: {request.name}-edge.log")
        shutil.copy(scratch / "edge.log", request.out / f"{request.name}-edge.log")
    finally:
        shutil.rmtree(scratch, ignore_errors=True)
    return result


def soak(
    edge: SoakEdge, references: References, tally: Tally, watch: MemoryWatch, options: SoakOptions, request: Request
) -> tuple[float, float]:
    """Traffic for as long as was asked, a new version at even distances; the span in the watch's seconds."""
    from fedkd.cli.benchmarks.soak_traffic import Traffic

    begin, seconds = watch.now_s, 60 * options.minutes
    until = time.monotonic() + seconds
    over = threading.Event()

    def swap() -> None:
        for place in range(options.swaps):
            if over.wait(max(0.0, begin + seconds * (place + 0.5) / options.swaps - watch.now_s)):
                return
            edge.publish()
            watch.mark(f"v{len(edge.versions) - 1}")
            request.say(
                f"{watch.now_s / 60:.1f} min: version {len(edge.versions) - 1} published; "
                f"{sum(tally.pictures.values())} pictures, {len(tally.wrong)} wrong, {len(tally.failed)} failed, "
                f"{watch.samples[-1].resident_bytes / 1e6:.0f} MB"
            )
            for line in tally.wrong[-1:]:
                request.say(f"the last wrong one: {line}")

    swapping = threading.Thread(target=swap, daemon=True)
    swapping.start()
    traffic = Traffic(edge, references, tally, options.vanish, options.wrong, options.seed)
    try:
        asyncio.run(traffic.run(options.users, until))
    finally:
        over.set()
        swapping.join()
    return begin, watch.now_s


def junked(
    edge: SoakEdge, references: References, watch: MemoryWatch, options: SoakOptions, request: Request
) -> tuple[JunkTally, Bystander, tuple[float, float]]:
    """Junk, and a bystander who draws meanwhile."""
    from fedkd.cli.benchmarks.soak_bystander import Bystander
    from fedkd.cli.benchmarks.soak_junk import junk

    watch.mark("junk")
    begin = watch.now_s
    with Bystander(edge, references) as bystander:
        found = junk(edge, options.junk, options.seed, request.say)
    return found, bystander, (begin, watch.now_s)


def rest(edge: SoakEdge, options: SoakOptions) -> Left:
    """Wait until every session left behind has had its lifetime, and say what there still is."""
    time.sleep(options.lifetime_s + SETTLE_S)
    found = edge.metrics()
    in_hand = found["fedkd_engine_running"] + found["fedkd_engine_waiting"]
    retired = sum(1 for name in found if name.startswith("fedkd_model_users{") and "state=retired" in name)
    return Left(found["fedkd_open_sessions"], retired, in_hand, edge.alive)


def add_soak(
    result: Result,
    options: SoakOptions,
    tally: Tally,
    edge: SoakEdge,
    watch: MemoryWatch,
    span: tuple[float, float],
    left: Left,
) -> None:
    """Tables, promises and notes of the traffic."""
    swapped = edge.metrics().get("fedkd_model_swaps_total{model=tiny-sd,outcome=swapped}", 0.0)
    vanished = sum(tally.vanished.values())
    counts: dict[str, float] = {**tally.pictures, "exact": tally.exact, "failed": len(tally.failed)}
    result.tables.append(_counted("Pictures by how they were asked for", counts))
    result.tables.append(_counted("Devices that vanished", dict(tally.vanished)))
    result.shows += [
        at_least("minutes of traffic", (span[1] - span[0]) / 60, options.minutes),
        at_most("wrong pictures", len(tally.wrong), 0),
        at_most("requests that failed for no reason of the client's", len(tally.failed), 0),
        at_least("versions that the edge was swapped to", swapped, options.swaps),
        at_least("devices that vanished in mid-session", vanished, int(ENOUGH * options.vanish * tally.sessions)),
        at_least("requests with a wrong token", tally.wrong_tokens, int(ENOUGH * options.wrong * tally.requests)),
        at_most("requests with a wrong token that were let in", tally.let_in, 0),
        at_most("sessions that another token got at", tally.stolen, 0),
        *_left(left),
        _flat("resident memory's growth after warm-up, traffic (%)", watch, _warm(span)),
    ]
    result.notes += [
        f"{vanished} of {tally.sessions} devices vanished; {tally.wrong_tokens} of {tally.requests} requests had a "
        "wrong token",
        *(f"failed: {line}" for line in _most(tally.failed)),
        *(f"WRONG: {line}" for line in tally.wrong[:SHOWN]),
        _sizes(watch, span),
    ]


def add_junk(
    result: Result,
    found: JunkTally,
    bystander: Bystander,
    watch: MemoryWatch,
    span: tuple[float, float],
    left: Left,
) -> None:
    """Tables, promises and notes of the junk."""
    result.tables.append(_counted("Answers to junk by status", {**dict(sorted(found.statuses.items()))}))
    result.shows += [
        at_most("junk answered with a failure of the edge's (5xx)", len(found.failed), 0),
        at_most("errors without OpenAI's form", len(found.untyped), 0),
        at_most("junk answered otherwise than OpenAPI says", sum(found.untrue.values()), 0),
        at_most("pictures of a bystander disturbed", len(bystander.disturbed), 0),
        at_least("pictures of a bystander meanwhile", bystander.pictures, 1),
        *_left(left),
        _flat("resident memory's growth after warm-up, junk (%)", watch, _warm(span)),
    ]
    result.notes += [
        f"{found.sent} junk requests, {found.given_up} of which their client gave up; "
        f"the bystander had {bystander.pictures} pictures and was told {bystander.busy} times to come later",
        *(f"5xx: {line}" for line in found.failed[:SHOWN]),
        *(f"no typed error: {line}" for line in _most(found.untyped)),
        *(f"untrue, {count} times: {reason}" for reason, count in found.untrue.most_common(SHOWN)),
        *(f"disturbed: {line}" for line in bystander.disturbed[:SHOWN]),
        _sizes(watch, span),
    ]


def _counted(title: str, counts: dict[str, Any]) -> Table:
    return Table(title, list(counts) or ["-"], {"count": {k: [float(v)] for k, v in counts.items()}}, True, digits=0)


def _left(left: Left) -> list[Shown]:
    return [
        at_most("sessions leaked", left.sessions, 0),
        at_most("retired versions still in memory", left.retired, 0),
        at_most("jobs left in the engine", left.engine, 0),
        at_least("the edge's process is the one that was started", float(left.alive), 1),
    ]


def _warm(span: tuple[float, float]) -> tuple[float, float]:
    from fedkd.cli.benchmarks.soak_memory import WARM_UP_SHARE

    return span[0] + WARM_UP_SHARE * (span[1] - span[0]), span[1]


def _flat(what: str, watch: MemoryWatch, span: tuple[float, float]) -> Shown:
    from fedkd.cli.benchmarks.soak_memory import growth

    return at_most(what, 100 * growth(watch.samples, *span), MEMORY_BOUND)


def _sizes(watch: MemoryWatch, span: tuple[float, float]) -> str:
    inside = [each for each in watch.samples if span[0] <= each.at_s <= span[1]] or watch.samples[-1:]
    first, last = inside[0], inside[-1]
    return (
        f"resident {first.resident_bytes / 1e6:.0f} MB at first, {last.resident_bytes / 1e6:.0f} MB at last, "
        f"{max(each.resident_bytes for each in inside) / 1e6:.0f} MB at most; threads {first.threads} to "
        f"{last.threads}, open files {first.files} to {last.files}"
    )


def _most(lines: list[str]) -> list[str]:
    return [f"{count} times: {line}" for line, count in Counter(lines).most_common(SHOWN)]
