"""`fedkd simulate`: the loop on one machine, from private images to a picture by edge and device."""

from __future__ import annotations

from typing import Annotated

import typer


def simulate(
    recipe: Annotated[str, typer.Argument(help="A recipe's name, or a YAML file (see: fedkd recipes ls)")] = "",
    overrides: Annotated[
        list[str] | None,
        typer.Argument(metavar="[a.b=c]...", help="Overrides, e.g. federation.rounds=3", show_default=False),
    ] = None,
    resume: Annotated[
        str, typer.Option("--resume", metavar="RUN", help="Go on with an interrupted run: its folder or name")
    ] = "",
) -> None:
    """Run a federation on this machine, serve what it learned, and write a report.

    Example: fedkd simulate quickstart

    Example: fedkd simulate quickstart distillation.gamma=0.3 run.name=softer

    Example: fedkd simulate --resume runs/quickstart
    """
    from functools import partial

    from fedkd.cli.run_folder import begun, guard_with, resumed, shown

    hint: list[str] = ["run the same command again to start over"]
    with guard_with(hint):
        chosen, run = resumed(resume, recipe, overrides or []) if resume else begun(recipe, overrides or [])
        hint[0] = f"what is done is saved; go on with: fedkd simulate --resume {shown(run)}"
        from fedkd.cli.carry_out import carry_out
        from server.simulation import simulation

        code = carry_out(chosen, run, partial(simulation, chosen, run), verb="simulate", resume=bool(resume))
    raise SystemExit(code)
