"""What a distillation job tells whoever watches it."""

from __future__ import annotations

from typing import Protocol


class View(Protocol):
    """Whoever watches a job."""

    def begin(self, title: str) -> None:
        """A piece of work begins."""

    def progress(self, done: int, total: int) -> None:
        """How far it is."""

    def losses(self, losses: dict[str, float]) -> None:
        """What the step just done came to."""

    def say(self, line: str) -> None:
        """A line worth keeping."""


class Silent:
    """A view that shows nothing."""

    def begin(self, title: str) -> None:
        """Nothing."""

    def progress(self, done: int, total: int) -> None:
        """Nothing."""

    def losses(self, losses: dict[str, float]) -> None:
        """Nothing."""

    def say(self, line: str) -> None:
        """Nothing."""
