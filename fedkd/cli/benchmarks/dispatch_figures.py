"""What the parts of `fedkd bench dispatch` have in common: held-out episodes, and a scheduler's delays on them."""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING

from fedkd.cli.benchmarks.request import Request

if TYPE_CHECKING:
    from fedkd.planning.cluster import Arrivals, ClusterSetting
    from fedkd.planning.dispatch_episodes import Outcome

ORACLE = "greedy oracle (in-slot)"
SLOT_START, IN_SLOT = "slot-start", "in-slot"
SOCIAL, SOCIAL_MEAN = "social", "social-mean"
SEEING = ("jsq", "power-of-two", "greedy", SOCIAL, SOCIAL_MEAN)  # rules to which in-slot information says more
QUICK_EPISODES = 4


def held_out(setting: ClusterSetting, request: Request, episodes: int) -> Arrivals:
    """The first held-out arrivals of a setting, the same for every scheduler."""
    from fedkd.planning.cluster import HELD_OUT_SEEDS, draw

    return draw(setting, HELD_OUT_SEEDS[: QUICK_EPISODES if request.quick else episodes])


def outcomes(arrivals: Arrivals, information: str, names: Iterable[str] = ()) -> dict[str, Outcome]:
    """Every scheduler's delays (or those of `names`) on the same arrivals."""
    from fedkd.planning.dispatch import SCHEDULERS
    from fedkd.planning.dispatch_episodes import run

    return {name: run(arrivals, SCHEDULERS[name], information) for name in names or SCHEDULERS}


def oracle(arrivals: Arrivals) -> Outcome:
    """Opt-TS: greedy for one's own delay, with in-slot information."""
    return outcomes(arrivals, IN_SLOT, ["greedy"])["greedy"]
