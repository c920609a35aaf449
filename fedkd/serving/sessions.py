"""Split sessions at the edge: a bounded number of pictures in the making, each for a limited time."""

from __future__ import annotations

import secrets
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field

from fedkd.inference.handoff import HandOff
from fedkd.inference.step_engine import Ticket
from fedkd.inference.wire import Form
from fedkd.models.conditioning import Conditions
from fedkd.serving.errors import EdgeFault
from fedkd.serving.served import Served
from fedkd.serving.streaming import Channel


@dataclass(eq=False)
class Session:
    """What the edge keeps of one split picture: its model, plan, embeddings and what it handed out.

    `handed` is without conditions, and None until the edge has done its first part. `alone` asks that the edge
    computes this picture apart from other requests, `exact` tells whether it did so far. `deadline_s` holds for each of
    its requests.
    """

    served: Served
    owner: str
    order: str
    device_steps: int
    channel: Channel
    wire: Form = "exact"
    alone: bool = False
    deadline_s: float | None = None
    id: str = ""
    conditions: Conditions | None = None
    control: str = ""  # the kind of its visual condition
    handed: HandOff | None = None
    total: int = 0
    exact: bool = True
    busy: bool = False
    ended: bool = False
    expires: float = 0.0
    tickets: list[Ticket] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.id = self.id or secrets.token_hex(16)

    @property
    def returns_at(self) -> int:
        """The step at which the device hands back."""
        return self.device_steps if self.order == "device_first" else self.total


class SessionStore:
    """Sessions by id; `capacity` of them at most, each dropped `lifetime_s` after its last use.

    Used on the event loop alone. `on_drop` is told of every session that ends, however it does: `finished`,
    `closed` by its device, `expired` or `failed`.
    """

    def __init__(self, capacity: int, lifetime_s: float, on_drop: Callable[[Session, str], None]) -> None:
        self.capacity, self.lifetime_s, self.on_drop = capacity, lifetime_s, on_drop
        self._sessions: dict[str, Session] = {}

    def __len__(self) -> int:
        self.sweep()
        return len(self._sessions)

    def has(self, session_id: str) -> bool:
        """Whether the session is here, whoever it belongs to."""
        return session_id in self._sessions

    def check_room(self) -> None:
        """EdgeFault 429 when the store is full."""
        if len(self) >= self.capacity:
            wait = min((each.expires for each in self._sessions.values()), default=0.0) - time.monotonic()
            raise EdgeFault(
                429,
                f"the edge already has {self.capacity} open sessions",
                code="too_many_sessions",
                retry_after_s=min(max(1.0, wait), 30.0),
            )

    def add(self, session: Session) -> None:
        """Keep a session; EdgeFault 429 when the store is full, 409 when its id is taken."""
        self.check_room()
        if session.id in self._sessions:
            raise EdgeFault(409, "a session of this id is open; choose another at random", param="id", code="id_taken")
        session.expires = time.monotonic() + self.lifetime_s
        self._sessions[session.id] = session

    def get(self, session_id: str, owner: str) -> Session:
        """The session, its time renewed; EdgeFault 404 when there is none that belongs to `owner`."""
        self.sweep()
        session = self._sessions.get(session_id)
        if session is None or session.owner != owner:  # nobody learns of others' sessions
            raise EdgeFault(404, "no such session; it ended or expired", param="id", code="session_not_found")
        session.expires = time.monotonic() + self.lifetime_s
        return session

    @contextmanager
    def working(self, session: Session) -> Iterator[None]:
        """While the edge works on a session it does not expire; EdgeFault 409 when it does already."""
        if session.busy:
            raise EdgeFault(409, "the edge works on this session already", param="id", code="session_busy")
        session.busy = True
        try:
            yield
        finally:
            session.busy = False
            session.expires = time.monotonic() + self.lifetime_s

    def drop(self, session: Session, outcome: str) -> None:
        """Forget a session and end its work; nothing when it is gone already."""
        if self._sessions.get(session.id) is not session:
            return
        del self._sessions[session.id]
        session.ended = True
        for ticket in session.tickets:
            ticket.cancel()
        session.tickets.clear()
        self.on_drop(session, outcome)

    def sweep(self) -> None:
        """Drop what has expired."""
        now = time.monotonic()
        for session in [each for each in self._sessions.values() if each.expires < now and not each.busy]:
            self.drop(session, "expired")

    def clear(self) -> None:
        """Drop everything, when the edge closes."""
        for session in list(self._sessions.values()):
            self.drop(session, "closed")
