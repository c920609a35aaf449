"""Split sessions at the edge: a bounded number of pictures in the making, each for a limited time."""

from __future__ import annotations

import secrets
import threading
import time
from dataclasses import dataclass, field

from fedkd.inference.handoff import HandOff
from fedkd.models.conditioning import Conditions
from fedkd.serving.errors import EdgeFault


@dataclass
class Session:
    """What the edge keeps of one split picture: its plan, its embeddings and what it handed out."""

    conditions: Conditions
    handed: HandOff  # as sent to the device, without conditions
    order: str
    device_steps: int
    total: int
    id: str = field(default_factory=lambda: secrets.token_hex(16))
    expires: float = 0.0

    @property
    def returns_at(self) -> int:
        """The step at which the device hands back."""
        return self.device_steps if self.order == "device_first" else self.total


class SessionStore:
    """Sessions by id; `capacity` of them at most, each dropped `lifetime_s` after its last use."""

    def __init__(self, capacity: int, lifetime_s: float) -> None:
        self.capacity, self.lifetime_s = capacity, lifetime_s
        self._sessions: dict[str, Session] = {}
        self._lock = threading.Lock()

    def __len__(self) -> int:
        with self._lock:
            self._drop_expired()
            return len(self._sessions)

    def check_room(self) -> None:
        """EdgeFault 429 when the store is full."""
        if len(self) >= self.capacity:
            raise EdgeFault(
                429, f"the edge already has {self.capacity} open sessions", code="too_many_sessions"
            )

    def add(self, session: Session) -> None:
        """Keep a session; EdgeFault 429 when the store is full."""
        with self._lock:
            self._drop_expired()
            if len(self._sessions) >= self.capacity:
                raise EdgeFault(
                    429, f"the edge already has {self.capacity} open sessions", code="too_many_sessions"
                )
            session.expires = time.monotonic() + self.lifetime_s
            self._sessions[session.id] = session

    def get(self, session_id: str) -> Session:
        """The session, its time renewed; EdgeFault 404 when there is none."""
        with self._lock:
            self._drop_expired()
            session = self._sessions.get(session_id)
            if session is None:
                raise EdgeFault(
                    404, "no such session; it ended or expired", param="id", code="session_not_found"
                )
            session.expires = time.monotonic() + self.lifetime_s
            return session

    def drop(self, session_id: str) -> bool:
        """Forget a session; False when there was none."""
        with self._lock:
            return self._sessions.pop(session_id, None) is not None

    def _drop_expired(self) -> None:
        now = time.monotonic()
        for key in [key for key, session in self._sessions.items() if session.expires < now]:
            del self._sessions[key]
