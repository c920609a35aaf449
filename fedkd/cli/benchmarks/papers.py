"""`fedkd bench papers`: the papers' figures beside ours, and where their own equations cannot give their numbers."""

from __future__ import annotations

from fedkd.cli.benchmarks.collected import collect
from fedkd.cli.benchmarks.request import Request
from fedkd.cli.benchmarks.result import Result

PARTS = ("euci", "oqc", "vce")


def run(request: Request) -> Result:
    """EUCI Fig. 8, OQC Figs. 1-2, and VCE/DDC Figs. 9-15; `only=euci` as override takes one of them."""
    return collect(request, "papers", PARTS)
