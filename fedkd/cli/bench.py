"""`fedkd bench`: measure what fedkd promises, beside what one would otherwise use."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

NAMES = (
    "federated",
    "distillation",
    "step-cost",
    "registry",
    "serving",
    "soak",
    "planning",
    "dispatch",
    "papers",
    "privacy",
    "scale",
    "faults",
    "sharing",
    "conditions",
)


def bench(
    name: Annotated[
        str,
        typer.Argument(
            help="federated, distillation, step-cost, registry, serving, soak, planning, dispatch, papers, privacy, "
            "scale, faults, sharing or conditions."
        ),
    ],
    overrides: Annotated[
        list[str] | None, typer.Argument(help="Recipe overrides, such as distillation.gamma=0.9.")
    ] = None,
    quick: Annotated[
        bool, typer.Option("--quick", help="One seed and few steps: shows that it runs, not what is true.")
    ] = False,
    jobs: Annotated[int, typer.Option(min=1, help="distillation, privacy: processes side by side, one a core.")] = 1,
    size: Annotated[
        str, typer.Option(help="step-cost: tiny, or sd15 for Stable Diffusion 1.5's UNet (wants a GPU).")
    ] = "tiny",
    sweep: Annotated[bool, typer.Option("--sweep", help="dispatch: also by tasks, capacity, steps and edges.")] = False,
    out: Annotated[Path, typer.Option(help="Folder for NAME.json, NAME.md and NAME.png.")] = Path("runs/bench"),
) -> None:
    """Run a benchmark: a table, and JSON, Markdown and a plot in runs/bench. Exit code 1 when a bound fails.

    Example: fedkd bench distillation --jobs 2
    Example: fedkd bench step-cost --size sd15 run.device=cuda run.dtype=bfloat16
    Example: fedkd bench registry kills=1000
    Example: fedkd bench serving model=sd15 device=cuda dtype=float16
    Example: fedkd bench dispatch --sweep
    Example: fedkd bench soak minutes=30 junk=10000
    """
    from fedkd.cli.console import console, fail, guard

    with guard("run the same command again; what is finished is kept"):
        from fedkd.recipe import nearest

        if name not in NAMES:
            fail(f"no benchmark named '{name}'; {nearest(name, NAMES)}")
        if size not in ("tiny", "sd15"):
            fail(f"--size {size} is not known; give tiny or sd15")
        if size != "tiny" and name != "step-cost":
            fail(f"--size {size} is for `fedkd bench step-cost`; leave it out")
        if sweep and name != "dispatch":
            fail("--sweep is for `fedkd bench dispatch`; leave it out")
        import importlib

        from rich.table import Table

        from fedkd.cli.benchmarks.request import Request
        from fedkd.cli.benchmarks.result import write

        module = importlib.import_module(f"fedkd.cli.benchmarks.{name.replace('-', '_')}")
        request = Request(
            name, quick, out, list(overrides or []), jobs, size, sweep, lambda text: console.print(text, markup=False)
        )
        result = module.run(request)
        for figures in result.tables:
            table = Table(title=f"{figures.title}; mean ± sd over seeds {result.seeds}")
            for heading in ("", *figures.columns):
                table.add_column(heading)
            for row in figures.rows:
                table.add_row(row, *(figures.cell(row, column) for column in figures.columns))
            console.print(table)
        for line in [*(shown.line for shown in result.shows), *result.notes]:
            console.print(line, markup=False)
        for path in write(result, out):
            console.print(f"wrote {path}", markup=False)
        if not all(shown.holds for shown in result.shows):
            raise SystemExit(1)
