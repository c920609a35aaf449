"""A progress bar for bytes on their way, and the words for what a transfer cost."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

from fedkd.cli.console import console

if TYPE_CHECKING:
    from fedkd.checkpoints.transfer import Moved


@contextmanager
def byte_bar(description: str) -> Iterator[Callable[[int, int], None]]:
    """A bar on stderr that follows `progress(bytes done, bytes in all)`; silent off a terminal."""
    if not console.is_terminal:
        yield lambda done, total: None
        return

    from rich.progress import BarColumn, DownloadColumn, Progress, TextColumn, TimeRemainingColumn, TransferSpeedColumn

    columns = (TextColumn("{task.description}"), BarColumn(), DownloadColumn(), TransferSpeedColumn())
    with Progress(*columns, TimeRemainingColumn(), console=console) as bars:
        task = bars.add_task(description, total=None)
        yield lambda done, total: bars.update(task, completed=done, total=total)


def cost(moved: Moved) -> str:
    """What a transfer moved and saved, in one line's words."""
    files = f"{moved.blobs} blob{'' if moved.blobs == 1 else 's'}"
    whole = max(1, moved.bytes_moved + moved.bytes_saved)
    share = 100 * moved.bytes_saved / whole
    return f"{size(moved.bytes_moved)} moved ({files}), {size(moved.bytes_saved)} saved ({share:.1f}%)"


def size(size_bytes: int) -> str:
    """A number of bytes with three digits and a unit."""
    amount, unit = float(size_bytes), "B"
    for larger in ("kB", "MB", "GB", "TB"):
        if amount < 1000:
            break
        amount, unit = amount / 1000, larger
    return f"{amount:.0f} {unit}" if unit == "B" else f"{amount:.3g} {unit}"
