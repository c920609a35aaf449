"""`fedkd report`: one self-contained page of a run, whatever it got to."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from fedkd.cli.console import console, guard


def report(
    run: Annotated[str, typer.Argument(metavar="RUN", help="A run's folder, or its name below runs/.")],
    pictures: Annotated[
        bool, typer.Option(help="Draw base and student at the same prompts where no pictures of them are there yet.")
    ] = True,
) -> None:
    """Write a run's report from what its folder holds, and print the page's path.

    The run may be finished, under way, stopped or killed. The page shows pictures before and after, quality by
    concept, bytes by round, phase and node, privacy, what happened, where checkpoints come from and the audit log; it
    needs no other file and no network. The same figures for programs are in RUN/report.json.

    Example: fedkd report quickstart

    Example: fedkd report runs/quickstart --no-pictures
    """
    from fedkd.cli.run_folder import shown

    with guard():
        folder = run_folder(run)
        from server.run_report import write_run_report

        def draw(student: str) -> None:
            console.print(f"drawing pictures of the base and {student}", markup=False)

        print(shown(write_run_report(folder, draw=draw if pictures else None)))


def run_folder(run: str) -> Path:
    """The absolute folder of a run that is given by folder or by name; RecipeError when there is none."""
    from fedkd.recipe import RecipeError, nearest

    for folder in (Path(run).expanduser(), Path("runs") / run):
        if (folder / "recipe.yaml").is_file():
            return folder.resolve()
    there = [path.parent.name for path in sorted(Path("runs").glob("*/recipe.yaml"))]
    hint = nearest(run, there) if there else "give a run's folder, e.g. runs/quickstart"
    raise RecipeError(f"no run with a recipe.yaml at '{run}'; {hint}")
