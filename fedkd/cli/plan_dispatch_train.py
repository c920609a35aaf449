"""`fedkd plan dispatch-train`: learn which edge serves, and leave the policy as safetensors and JSON."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

REPORT = 10  # episodes


def dispatch_train(
    changes: Annotated[
        list[str] | None,
        typer.Argument(
            metavar="[FIELD=VALUE]...",
            help="What differs from LAD-TS's cluster, such as edges=8 capacity=10,70 arrivals=bursty.",
            show_default=False,
        ),
    ] = None,
    episodes: Annotated[int, typer.Option(min=1, help="How many to learn from, each of 59 slots.")] = 100,
    seed: Annotated[int, typer.Option(min=0, help="Of the first weights, the clusters and the arrivals.")] = 0,
    vary: Annotated[
        bool, typer.Option("--vary/--same", help="Another cluster and load each episode, or always the one given.")
    ] = True,
    out: Annotated[Path, typer.Option(help="Writes OUT.safetensors and OUT.json.")] = Path("runs/dispatch/policy"),
) -> None:
    """Train a policy that scores every edge by the same small network, and so serves any number of edges.

    After each episode all choices of all tasks, taken or not, are weighed by the delay that they would have meant for
    the task and for everybody behind it.

    Example: fedkd plan dispatch-train --episodes 100 --out runs/dispatch/policy
    Example: fedkd plan dispatch edges=8 --policy runs/dispatch/policy
    """
    from fedkd.cli.console import guard

    with guard():
        import numpy as np

        from fedkd.cli.plan_dispatch import cluster_setting
        from fedkd.planning.learning.social_training import SocialSetting, SocialTraining

        training = SocialTraining(SocialSetting(seed=seed, vary=vary), cluster_setting(changes or []))
        while training.episode < episodes:
            training.run(min(episodes, training.episode + REPORT))
            print(
                f"episode {training.episode}: mean delay {np.mean(training.delays_s[-REPORT:]):.2f} s of the last ones"
            )
        training.policy.export(out)
        print(f"wrote {out.with_suffix('.safetensors')} and {out.with_suffix('.json')}")
