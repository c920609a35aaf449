"""Work for the accelerator's thread that is no step (encode, decode …), its owners served in turn."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from concurrent.futures import Future
from typing import Any


class Call:
    """One piece of work and the future that answers it."""

    def __init__(self, work: Callable[[], Any]) -> None:
        self.work, self.future = work, Future[Any]()

    def make(self) -> None:
        """Run the work, unless its future was cancelled before."""
        if not self.future.set_running_or_notify_cancel():
            return
        try:
            result = self.work()
        except BaseException as error:
            self.future.set_exception(error)
        else:
            self.future.set_result(result)

    def refuse(self, error: BaseException) -> None:
        """Answer with `error` instead."""
        if self.future.set_running_or_notify_cancel():
            self.future.set_exception(error)


class CallQueue:
    """Calls that wait: one of each owner in turn, each owner's own in the order they came."""

    def __init__(self) -> None:
        self._waiting: dict[str, deque[Call]] = {}

    def __len__(self) -> int:
        return sum(map(len, self._waiting.values()))

    def add(self, owner: str, call: Call) -> None:
        """Put `call` behind the others of its owner."""
        self._waiting.setdefault(owner, deque()).append(call)

    def next(self) -> Call | None:
        """Take out the call whose turn it is, if any waits."""
        if not self._waiting:
            return None
        owner = next(iter(self._waiting))
        queue = self._waiting.pop(owner)
        call = queue.popleft()
        if queue:
            self._waiting[owner] = queue  # behind the other owners
        return call

    def take_all(self) -> list[Call]:
        """Take out everything."""
        calls = [call for queue in self._waiting.values() for call in queue]
        self._waiting.clear()
        return calls
