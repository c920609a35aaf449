"""`fedkd bench`: measure what fedkd promises, beside what one would otherwise use."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

NAMES = ("federated",)


def bench(
    name: Annotated[str, typer.Argument(help="Which benchmark: federated.")],
    overrides: Annotated[
        list[str] | None, typer.Argument(help="Recipe overrides, such as distillation.gamma=0.9.")
    ] = None,
    quick: Annotated[
        bool, typer.Option("--quick", help="One seed and few steps: shows that it runs, not what is true.")
    ] = False,
    out: Annotated[Path, typer.Option(help="Folder for NAME.json, NAME.md and NAME.png.")] = Path("runs/bench"),
) -> None:
    """Run a benchmark: a table, and JSON, Markdown and a plot in runs/bench. Exit code 1 when a bound fails.

    Example: fedkd bench federated --quick
    """
    from fedkd.cli.console import console, fail, guard

    with guard("run the same command again; finished seeds are kept"):
        from fedkd.recipe import nearest

        if name not in NAMES:
            fail(f"no benchmark named '{name}'; {nearest(name, NAMES)}")
        import importlib

        from rich.table import Table

        from fedkd.cli.benchmarks.result import write

        module = importlib.import_module(f"fedkd.cli.benchmarks.{name}")
        result = module.run(quick, out, list(overrides or []), lambda text: console.print(text, markup=False))
        table = Table(title=f"fedkd bench {name} (percent, mean ± sd over seeds {result.seeds})")
        for heading in ("", *result.columns):
            table.add_column(heading)
        for row in result.rows:
            table.add_row(row, *(result.cell(row, column) for column in result.columns))
        console.print(table)
        for shown in result.shows:
            verdict = "holds" if shown.holds else "FAILS"
            console.print(f"{verdict}: {shown.what}: {shown.value:.1f} (bound {shown.bound:g})", markup=False)
        for line in [*result.notes, *(f"wrote {path}" for path in write(result, out))]:
            console.print(line, markup=False)
        if not all(shown.holds for shown in result.shows):
            raise SystemExit(1)
