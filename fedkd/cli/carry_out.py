"""A federation from its start to its report, whoever started Flower."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import typer

from fedkd.cli.console import console
from fedkd.cli.run_folder import shown

if TYPE_CHECKING:
    from fedkd.recipe import Recipe
    from server.processes import FlowerRun

DEFECT = 1
LOOPBACK = "127.0.0.1"
Start = Callable[[str, str], contextlib.AbstractContextManager["FlowerRun"]]


def carry_out(
    recipe: Recipe, run: Path, start: Start, *, verb: str, resume: bool, host: str = LOOPBACK, token: str = ""
) -> int:
    """Federate, show, report; returns the exit code.

    `start(url, token)` starts Flower on RUN/recipe.yaml, whose nodes pull checkpoints from there; `host` is where
    the run's registry is served, to those who show `token`, when the recipe names no place; `verb` is the command
    that resumes the run.
    """
    import sys
    import time
    from datetime import UTC, datetime

    from fedkd.cli.live import RunView
    from fedkd.recipe import registry_dir
    from server.processes import last_error
    from server.run_report import write_run_report
    from server.state import RunState
    from server.summary import compose

    started, clock = datetime.now(UTC).isoformat(timespec="seconds"), time.monotonic()
    registry = registry_dir(recipe) if recipe.run.registry else run / "registry"
    state = RunState(run)
    clockwork = state.finished(0, "clock") or {"started": started, "seconds": 0.0}
    facts = {"started": clockwork["started"], "command": " ".join(["fedkd", *sys.argv[1:]])}

    def report(**more: Any) -> Path:
        seconds = clockwork["seconds"] + time.monotonic() - clock
        state.finish(0, "clock", {**clockwork, "seconds": seconds})
        return write_run_report(run, **facts, wall_seconds=seconds, **more)

    try:
        with RunView(console, run, resume=resume) as view:
            if state.finished(recipe.federation.rounds, "redistribute") is None:
                with registry_for(recipe, registry, host, token) as (url, token), start(url, token) as flower:
                    while flower.running():
                        view.update()
                        time.sleep(0.2)
                    status = flower.status()
                view.update()
                if status != "finished:completed":
                    message, defect = last_error(run, run / "flower.log")
                    page = report(stopped=message)
                    advice = f"see {shown(run / 'flower.log')}; go on with: fedkd {verb} --resume {shown(run)}"
                    typer.echo(f"error: {message} (report so far: {shown(page)}; {advice})", err=True)
                    return DEFECT if defect else 2
            from server.showcase import before_and_after, split_pictures

            made = compose(recipe, run, registry)
            paths = published(made, run, registry, state)
            view.phase("before and after")
            pictures = before_and_after(
                paths["base"][0], paths["student"][0], recipe, run, sampling=paths["student"][1]
            )
            view.phase("split inference on loopback")
            served, sampling = paths["served"]
            split = split_pictures(served, recipe, run, view.progress, sampling=sampling)
    except KeyboardInterrupt:
        report(stopped="interrupted")
        raise
    page = report(split=split, pictures=pictures)
    from fedkd.cli.live import summarise

    summarise(console, compose(recipe, run, registry), split)
    print(shown(page))
    if not split["bitwise_equal"]:
        typer.echo("error: a split picture differs from the unsplit pipeline; see the report", err=True)
        return DEFECT
    return 0


@contextlib.contextmanager
def registry_for(recipe: Recipe, root: Path, host: str = LOOPBACK, token: str = "") -> Iterator[tuple[str, str]]:
    """(URL, token) where the run's nodes pull checkpoints; served here at `host` unless the recipe names a place.

    Without a `token` a new one is made.
    """
    if recipe.federation.registry_url:
        yield "", ""
        return
    import secrets

    from fedkd.serving.background import in_background
    from fedkd.serving.registry_http import create_registry_app

    token = token or secrets.token_urlsafe(32)
    with in_background(create_registry_app(root, token), host) as url:
        yield url, token


def published(report: dict[str, Any], run: Path, registry: Path, state: Any) -> dict[str, tuple[str, dict[str, Any]]]:
    """(folder, sampling) of the base, of the last student, and of the checkpoint that is served."""
    from fedkd.checkpoints.registry import Registry

    store = Registry(registry)
    base = state.finished(0, "base")["checkpoint"]
    students = [entry["checkpoint"] for entry in report["rounds"] if "checkpoint" in entry]
    served = f"{report['checkpoint']['name']}:{report['checkpoint']['version']}"
    references = {"base": base, "student": students[-1] if students else served, "served": served}
    return {who: (str(store.resolve(name)), store.manifest(name).sampling) for who, name in references.items()}
