"""`fedkd watch`: look on at a run that another terminal started."""

from __future__ import annotations

from typing import Annotated

import typer

from fedkd.cli.console import console, guard


def watch(
    run: Annotated[str, typer.Argument(metavar="RUN", help="A run's folder, or its name below runs/.")],
    patience: Annotated[
        float, typer.Option(metavar="SECONDS", min=1.0, help="Leave when the run has said nothing for so long.")
    ] = 600.0,
) -> None:
    """Show a federation while it runs: rounds, phases, nodes, bytes, losses. Ends when the run ends.

    Ctrl-C ends the view and leaves the run alone. Exit code 1 when the run failed or fell silent.

    Example: fedkd watch quickstart
    """
    from fedkd.cli.run_folder import shown

    with guard("the run goes on; look again with the same command"):
        from fedkd.cli.live import RunView, follow
        from fedkd.cli.report import run_folder
        from fedkd.recipe import RecipeError, load_recipe

        folder = run_folder(run)
        recipe = load_recipe(str(folder / "recipe.yaml"))
        if recipe.kind != "federation":
            raise RecipeError(f"{shown(folder)} is a run of kind {recipe.kind}; only a federation has nodes to watch")
        with RunView(console, folder) as view:
            end = follow(view, recipe.federation.rounds, patience)
        page = f"a page of it: fedkd report {shown(folder)}"
        if end == "finished":
            console.print(f"the federation is finished; {page}", markup=False, soft_wrap=True)
            return
        why = view.board.failed if end == "failed" else f"it has said nothing for {patience:g} s; killed, or very slow"
        console.print(f"the run {'stopped' if end == 'failed' else 'is silent'}: {why}; {page}", markup=False)
        raise SystemExit(1)
