"""What happened to a run: who was left out, refused, late, gone or back, and where the server was stopped."""

from __future__ import annotations

import time
from typing import Any

from server.state import PHASES, RunState

SERVER = "server"
STARTS = "starts"  # of the run's state: where each server process after the first went on
Event = dict[str, Any]


def note_start(state: RunState, rounds: int) -> Event | None:
    """Record that a server process begins; where it goes on when it is not the run's first, else None."""
    facts = state.finished(0, STARTS)
    if facts is None:
        state.finish(0, STARTS, {"resumed": []})
        return None
    number, phase = under_way(state, rounds)
    resumed = {"round": number, "phase": phase, "time": time.time()}
    state.finish(0, STARTS, {"resumed": [*facts["resumed"], resumed]})
    return resumed


def under_way(state: RunState, rounds: int) -> tuple[int, str]:
    """The first phase that is not finished, with its round; the last one of all when everything is."""
    if state.finished(0, "base") is None:
        return 0, "base"
    for number in range(1, rounds + 1):
        for phase in PHASES:
            if state.finished(number, phase) is None:
                return number, phase
    return rounds, PHASES[-1]


def events(state: RunState, rounds: int) -> list[Event]:
    """What the run's state says of faults, in order: a list of {"round", "phase", "node", "what"}."""
    found: list[Event] = []
    known: set[str] = set()
    absent: set[str] = set()
    for number in range(rounds + 1):
        phases = {phase: facts for phase in PHASES if (facts := state.finished(number, phase)) is not None}
        if "describe" in phases:
            here = {node["name"] for node in phases["describe"]["nodes"]}
            told = {
                **{name: "it is not there" for name in known - here - absent},
                **{name: "it is back" for name in here & absent},
                **({name: "it joined late" for name in here - known} if known else {}),
            }
            found += [_event(number, "describe", name, told[name]) for name in sorted(told)]
            known, absent = known | here, (absent | known) - here
        for phase, facts in phases.items():
            found += _of_phase(number, phase, facts)
        stopped = state.finished(number, "stopped")
        if stopped is not None:
            phase, entry = stopped["entry"]["name"], stopped["entry"]
            found += [] if phase in phases else _of_phase(number, phase, stopped)
            what = f"the run stopped: only {entry['answered']} of {entry['asked']} nodes answered well"
            found.append(_event(number, phase, SERVER, what))
    starts = state.finished(0, STARTS) or {"resumed": []}
    for start in starts["resumed"]:
        found.append(_event(start["round"], start["phase"], SERVER, "it was stopped here, and the run was resumed"))
    order = {phase: place for place, phase in enumerate(PHASES)}
    return sorted(found, key=lambda event: (event["round"], order.get(event["phase"], -1)))


def _of_phase(number: int, phase: str, facts: dict[str, Any]) -> list[Event]:
    """The events of one phase: nodes left out, answers that came twice, teachers that are not believed."""
    entry = facts["entry"]
    found = [_event(number, phase, left["node"], f"left out: {left['reason']}") for left in entry["left_out"]]
    found += [
        _event(number, phase, node, "it answered more than once: the first answer counts")
        for node in entry["duplicates"]
    ]
    for user, why in sorted(facts.get("missing", {}).items()):
        found.append(_event(number, phase, user, f"its set is left out: {why}"))
    if phase == "distil":
        found += [_event(number, phase, node, f"lambda 0: {why}") for node, why in sorted(facts["left_out"].items())]
    if phase == "publish" and facts["alias"] == "candidate":
        what = f"{facts['checkpoint']} knows less than its parent: a candidate, not served"
        found.append(_event(number, phase, SERVER, what))
    return found


def _event(number: int, phase: str, node: str, what: str) -> Event:
    return {"round": number, "phase": phase, "node": node, "what": what}
