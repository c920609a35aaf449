"""`fedkd bench planning`: the planners' speed, their gaps to the optimum, baselines, and predicted delays."""

from __future__ import annotations

from fedkd.cli.benchmarks.collected import collect
from fedkd.cli.benchmarks.request import Request
from fedkd.cli.benchmarks.result import Result

PARTS = ("offload", "denoising", "delay")


def run(request: Request) -> Result:
    """Offloading, denoising, and delays over a limited link; `only=offload` as override takes one of them."""
    return collect(request, "planning", PARTS)
