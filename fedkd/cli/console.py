"""What every verb shares on the terminal: one console, one way to fail, one progress bar."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import NoReturn

from rich.console import Console

console = Console(stderr=True, highlight=False)

USER_ERROR = 2
INTERRUPTED = 130

Progress = Callable[[int, int], None]


def fail(message: str) -> NoReturn:
    """Print `error: message` as one plain line on stderr and exit with status 2."""
    print(f"error: {' '.join(str(message).split())}", file=sys.stderr, flush=True)
    raise SystemExit(USER_ERROR)


@contextmanager
def guard(on_interrupt: str = "run the same command again to start over") -> Iterator[None]:
    """Turn a user's mistake into one line and exit 2, and Ctrl-C into one line and exit 130.

    A mistake is a ValueError (RecipeError, ModelError, ...) or an OSError; anything else is a defect of
    ours and keeps its traceback. `on_interrupt` says what to do after Ctrl-C.
    """
    try:
        yield
    except KeyboardInterrupt:
        print(f"\ninterrupted: {on_interrupt}", file=sys.stderr, flush=True)
        raise SystemExit(INTERRUPTED) from None
    except (ValueError, OSError) as error:
        if not str(error).strip():
            raise
        fail(str(error))


@contextmanager
def progress_bar(description: str) -> Iterator[Progress]:
    """A bar on stderr that follows `progress(done, total)`; off a terminal it writes one line at the end."""
    if not console.is_terminal:
        seen = [0, 0]

        def remember(done: int, total: int) -> None:
            seen[:] = [done, total]

        yield remember
        console.print(f"{description}: {f'{seen[0]}/{seen[1]}' if seen[1] else 'done'}", markup=False)
        return

    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn())
    with Progress(*columns, console=console) as bars:
        task = bars.add_task(description, total=None)
        yield lambda done, total: bars.update(task, completed=done, total=total)
