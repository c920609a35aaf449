"""What a benchmark is asked: how much, where to, with which changes to the recipe."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path


def silent(text: str) -> None:
    """Say nothing."""


@dataclass(frozen=True)
class Request:
    """`quick`: one seed and few steps; `jobs`: processes side by side; `say`: where lines of progress go.

    `sweep`: what is swept over, too.
    """

    name: str
    quick: bool = False
    out: Path = Path("runs/bench")
    overrides: list[str] = field(default_factory=list)
    jobs: int = 1
    size: str = "tiny"
    sweep: bool = False
    say: Callable[[str], None] = silent

    @property
    def command(self) -> str:
        """The command that repeats this benchmark."""
        options = [
            *(["--quick"] if self.quick else []),
            *([f"--jobs {self.jobs}"] if self.jobs != 1 else []),
            *([f"--size {self.size}"] if self.size != "tiny" else []),
            *(["--sweep"] if self.sweep else []),
        ]
        return " ".join([f"fedkd bench {self.name}", *options, *self.overrides])
