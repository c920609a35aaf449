"""A benchmark in parts, each in a module of its own: NAME_PART.tables_and_shows(request), and notes(request) if any."""

from __future__ import annotations

import importlib
from collections.abc import Sequence

from fedkd.cli.benchmarks.request import Request
from fedkd.cli.benchmarks.result import Result, Shown
from fedkd.planning.machines import PlanningError


def collect(request: Request, name: str, parts: Sequence[str]) -> Result:
    """The parts one after the other, as one result; `only=PART` among the overrides takes one of them.

    A part that stops with an error is a promise that failed, and the others' figures are kept.
    """
    result = Result(request.name, request.command, [0], [])
    for part in wanted(request, parts):
        request.say(f"{name}: {part}")
        module = importlib.import_module(f"fedkd.cli.benchmarks.{name}_{part}")
        try:
            tables, shows = module.tables_and_shows(request)
        except (ValueError, OSError) as error:  # the other parts' figures must not be lost with it
            request.say(f"{name}: {part} stopped: {error}")
            result.shows.append(Shown(f"{part} ran to its end (it stopped: {error}), yes = 1", 0.0, 1.0, False))
            continue
        result.tables += tables
        result.shows += shows
        if hasattr(module, "notes"):
            result.notes += module.notes(request)
    return result


def wanted(request: Request, parts: Sequence[str]) -> list[str]:
    """The parts that the overrides ask for; PlanningError for any other override."""
    chosen: list[str] = []
    for override in request.overrides:
        key, _, value = override.partition("=")
        if key != "only" or value not in parts:
            raise PlanningError(
                f"'{override}' is nothing that this benchmark knows; give only={' or only='.join(parts)}"
            )
        chosen.append(value)
    return chosen or list(parts)
