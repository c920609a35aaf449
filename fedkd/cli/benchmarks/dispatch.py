"""`fedkd bench dispatch`: which edge serves, by every rule, on arrivals that nothing was tuned on."""

from __future__ import annotations

from fedkd.cli.benchmarks.collected import collect
from fedkd.cli.benchmarks.request import Request
from fedkd.cli.benchmarks.result import Result

# A part is a module dispatch_PART.py beside this one.
PARTS = ("rules", "robustness", "speed", "live")
SWEEPS = ("sweeps",)  # minutes of their own: only when asked for
LEARNED = ("learned",)  # an hour or more, kept and taken up again: only=learned


def run(request: Request) -> Result:
    """All parts, with `--sweep` the sweeps too; `only=rules` as override takes one of them, `only=learned` trains."""
    asked = {override.partition("=")[2] for override in request.overrides}
    sweeps = SWEEPS if request.sweep or asked & set(SWEEPS) else ()
    learned = LEARNED if asked & set(LEARNED) else ()
    return collect(request, "dispatch", (*PARTS, *sweeps, *learned))
