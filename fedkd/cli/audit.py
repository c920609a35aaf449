"""`fedkd audit`: the log of who gave what to which checkpoint: verified, or shown as a table."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from fedkd.cli.console import guard

audit = typer.Typer(
    help="The audit log of a run: who gave what to which checkpoint, what was refused, and what failed.\n\n"
    "Each line holds the sha256 of the line before, so that no line can be changed, removed or inserted unseen.\n\n"
    "Example: fedkd audit verify runs/quickstart",
    no_args_is_help=True,
    rich_markup_mode="rich",
)

Run = Annotated[str, typer.Argument(metavar="RUN", help="A run's folder, or its name below runs/.")]
CHAIN = {"n", "previous", "time", "event", "sha256"}
PLACE = {"round", "phase", "node", "edge"}


def folder_of(run: str) -> Path:
    """The folder of a run that is given by folder or by name."""
    named = Path("runs") / run
    return named if not Path(run).expanduser().is_dir() and named.is_dir() else Path(run).expanduser()


@audit.command("verify")
def verify(
    run: Run,
    key: Annotated[list[Path] | None, typer.Option(help="Public key (PEM) that the log has to be signed by.")] = None,
) -> None:
    """Check that no line was changed, removed or inserted. Exit code 1 when one was, and the first is named.

    The last lines can be cut off together with the head unless it was signed (run.signing_key) and you give --key.

    Example: fedkd audit verify runs/quickstart --key ~/.fedkd/signing.pub
    """
    with guard():
        from fedkd.checkpoints.audit_check import verify_log

        verdict = verify_log(folder_of(run), [path.expanduser() for path in key or []])
        if verdict.problem:
            typer.echo(f"FAILS: {verdict.problem}", err=True)
            raise SystemExit(1)
        signed = f", signed up to line {verdict.signed} by {verdict.signer[:16]}…" if verdict.signer else ", not signed"
        unchecked = "" if verdict.checked or not verdict.signer else " (not checked: give its public key with --key)"
        print(f"holds: {verdict.lines} lines, last digest {verdict.last[:16]}…{signed}{unchecked}")


@audit.command("show")
def show(
    run: Run,
    event: Annotated[str, typer.Option(help="Only this event, such as gave, refused or published.")] = "",
    node: Annotated[str, typer.Option(help="Only this node, such as user-3.")] = "",
) -> None:
    """Show the log as a table, without verifying it.

    Example: fedkd audit show runs/quickstart --event published
    """
    with guard():
        from rich.console import Console
        from rich.table import Table

        from fedkd.checkpoints.audit_chain import parsed, read_lines
        from fedkd.recipe import RecipeError, nearest

        lines = parsed(read_lines(folder_of(run)))
        for name, wanted in (("event", event), ("node", node)):
            known = sorted({str(line[name]) for line in lines if name in line})
            if wanted and wanted not in known:
                raise RecipeError(f"no line has the {name} '{wanted}'; {nearest(wanted, known or ['none'])}")
        table = Table("", "time", "event", "round", "node", "what")
        for line in lines:
            if event in ("", line["event"]) and node in ("", line.get("node")):
                place = "/".join(str(line[key]) for key in ("node", "edge") if line.get(key))
                table.add_row(
                    *(str(line["n"]), str(line["time"])[:19], str(line["event"]), str(line.get("round", ""))),
                    *(place, words({key: value for key, value in line.items() if key not in CHAIN | PLACE})),
                )
        Console(highlight=False, markup=False, width=None if Console().is_terminal else 200).print(table)


def words(facts: dict[str, Any]) -> str:
    """Facts as `key=value`, digests in short."""

    def word(value: Any) -> str:
        if isinstance(value, dict):
            return "{" + ", ".join(f"{key}: {word(inner)}" for key, inner in value.items()) + "}"
        text = str(value)
        return text[:12] + "…" if len(text) == 64 and set(text) <= set("0123456789abcdef") else text

    return ", ".join(f"{key}={word(value)}" for key, value in facts.items())
