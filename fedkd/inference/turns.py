"""Whose turn it is: which jobs go into the next forward, fair between owners, whatever each has queued."""

from __future__ import annotations

from collections.abc import Callable, Hashable, Sequence
from typing import Protocol, TypeVar

WINDOW = 16  # an owner's jobs in progress at once; more would only put off every last step


class Turn(Protocol):
    """What a choice depends on. `turn` is the round in which the job had its last step (-1: none yet)."""

    owner: str
    exact: bool
    deadline: float
    turn: int

    @property
    def place(self) -> Hashable: ...
    @property
    def rows(self) -> int: ...
    @property
    def work(self) -> float: ...


Waiting = TypeVar("Waiting", bound=Turn)


class Turns:
    """Round robin by work: the owner that has had the least goes next, and a newcomer has had none.

    An owner's own jobs take turns, the longest unserved first, at most 16 (or a forward's fill) of the oldest
    at a time. Jobs close to their deadline go first, but lead only every second forward while others wait, so
    that a short deadline buys no more than half the machine.
    """

    def __init__(self) -> None:
        self._had: dict[str, float] = {}
        self._round = 0
        self._hurried = False

    def choose(
        self,
        waiting: Sequence[Waiting],
        rows_of_forward: Callable[[Waiting], int],
        close: Callable[[Waiting], bool],
    ) -> list[Waiting]:
        """The jobs of the next forward, of `waiting` (`Turn`s, oldest first); [] when none waits.

        The first is chosen by right; those that can share its forward (same `place`, neither `exact`) fill it
        up to `rows_of_forward(first)` rows.
        """
        if not waiting:
            return []
        self._welcome(waiting)
        pressed = sorted((turn for turn in waiting if close(turn)), key=lambda turn: turn.deadline)
        self._hurried = bool(pressed) and not self._hurried
        if not self._hurried:
            pressed = []
        first = pressed[0] if pressed else self._fairest(waiting, WINDOW)
        limit = 0 if first.exact else rows_of_forward(first)
        chosen, rows = [first], first.rows
        self._take(first)
        fit = [turn for turn in waiting if turn is not first and turn.place == first.place and not turn.exact]
        while rows < limit:
            fit = [turn for turn in fit if rows + turn.rows <= limit]
            if not fit:
                break
            ahead = [turn for turn in pressed if turn in fit]
            taken = ahead[0] if ahead else self._fairest(fit, max(WINDOW, limit))
            fit.remove(taken)
            self._take(taken)
            chosen.append(taken)
            rows += taken.rows
        self._round += 1
        return chosen

    def _welcome(self, waiting: Sequence[Waiting]) -> None:
        """Who is new starts level with whoever has had the least; who left is forgotten."""
        owners = dict.fromkeys(turn.owner for turn in waiting)
        least = min((self._had[owner] for owner in owners if owner in self._had), default=0.0)
        self._had = {owner: self._had.get(owner, least) - least for owner in owners}

    def _fairest(self, waiting: Sequence[Waiting], window: int) -> Waiting:
        owner = min(dict.fromkeys(turn.owner for turn in waiting), key=lambda owner: self._had[owner])
        return min([turn for turn in waiting if turn.owner == owner][:window], key=lambda turn: turn.turn)

    def _take(self, turn: Turn) -> None:
        self._had[turn.owner] += turn.work
        turn.turn = self._round
