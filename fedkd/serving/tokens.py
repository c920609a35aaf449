"""Bearer tokens: who may use an edge, how often, and with how many requests at once."""

from __future__ import annotations

import hashlib
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any

from fedkd.serving.errors import EdgeFault


class TokenError(ValueError):
    """A file of tokens that cannot be used."""


@dataclass(frozen=True)
class Limits:
    """What one token may ask for; 0 means no limit."""

    requests_per_minute: float = 0.0
    concurrent: int = 0


@dataclass
class Holder:
    """Somebody who holds a token: a name for logs and fairness, and what is left of the limits.

    `credit` is a bucket of requests that fills at `requests_per_minute`, and holds one minute's worth.
    """

    name: str
    limits: Limits
    clock: Callable[[], float] = time.monotonic
    running: int = 0
    credit: float = field(init=False)
    filled_at: float = field(init=False)

    def __post_init__(self) -> None:
        self.credit, self.filled_at = max(1.0, self.limits.requests_per_minute), self.clock()

    @contextmanager
    def request(self) -> Iterator[None]:
        """Count one request that makes the edge compute; EdgeFault 429 when the limits are used up."""
        self._spend()
        if self.limits.concurrent and self.running >= self.limits.concurrent:
            raise EdgeFault(
                429, f"this token may have {self.limits.concurrent} requests at once", code="too_many_requests"
            )
        self.running += 1
        try:
            yield
        finally:
            self.running -= 1

    def _spend(self) -> None:
        rate = self.limits.requests_per_minute / 60
        if not rate:
            return
        now = self.clock()
        room = max(1.0, self.limits.requests_per_minute)
        self.credit = min(room, self.credit + rate * (now - self.filled_at))
        self.filled_at = now
        if self.credit < 1:
            raise EdgeFault(
                429,
                f"this token may make {self.limits.requests_per_minute:g} requests a minute",
                code="rate_limit_exceeded",
                retry_after_s=(1 - self.credit) / rate,
            )
        self.credit -= 1


class TokenBook:
    """The holders of tokens, found by the sha256 of what they send; without any, everybody is let in.

    `peers` are the other edges, where they have a token of their own; others have no need to know it.
    """

    def __init__(self, holders: dict[str, Holder] | None = None, peer_token: str = "") -> None:
        self._holders = holders or {}
        self.anybody, self.peers = Holder("", Limits()), Holder("", Limits())
        self._peer = _digest(peer_token) if peer_token else ""

    def __bool__(self) -> bool:
        return bool(self._holders)

    @property
    def names(self) -> list[str]:
        """The holders' names."""
        return [holder.name for holder in self._holders.values()]

    def holder(self, authorization: str) -> Holder | None:
        """Who sends this Authorization header; None when it names no known token."""
        if not self._holders and not self._peer:
            return self.anybody
        scheme, _, token = authorization.partition(" ")
        # Looked up by digest, so that the time it takes says nothing of how much of a guess was right.
        digest = _digest(token.strip()) if scheme.lower() == "bearer" else ""
        if digest and digest == self._peer:
            return self.peers
        return self._holders.get(digest) if self._holders else self.anybody

    def is_peer(self, holder: Holder | None) -> bool:
        """Whether this is another edge; anybody may say so where there are no tokens at all."""
        return holder is self.peers or (holder is self.anybody and not self._peer)


def token_book(token: str = "", path: str = "", *, default: Limits | None = None, peer_token: str = "") -> TokenBook:
    """The tokens of an edge: the one `token`, if any, and those of the file at `path`, if any, and other edges'.

    The file is YAML (or JSON): `tokens:`, a list of `{name, token | sha256, requests_per_minute, concurrent}`.
    `default` holds where an entry names no limit. TokenError says what is wrong with the file.
    """
    default = default or Limits()
    holders = {_digest(token): Holder("token", default)} if token else {}
    for digest, holder in _read(path, default) if path else ():
        if digest in holders:
            raise TokenError(f"tokens={path}: '{holder.name}' has the token of '{holders[digest].name}'; change one")
        if any(holder.name == other.name for other in holders.values()):
            raise TokenError(f"tokens={path}: two tokens are called '{holder.name}'; names must differ")
        holders[digest] = holder
    if peer_token and _digest(peer_token) in holders:
        raise TokenError("peer_token is a client's token too; give the edges another one")
    return TokenBook(holders, peer_token)


def book_of(secrets: Mapping[str, str]) -> TokenBook:
    """A book of {name: token} without limits."""
    return TokenBook({_digest(token): Holder(name, Limits()) for name, token in secrets.items()})


def _read(path: str, default: Limits) -> Iterator[tuple[str, Holder]]:
    import yaml

    try:
        found = yaml.safe_load(Path(path).expanduser().read_text(encoding="utf-8"))
    except OSError as error:
        raise TokenError(f"tokens={path} cannot be read: {error.strerror}") from error
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise TokenError(f"tokens={path} is no YAML; write `tokens:` and a list of name and token") from error
    entries = found.get("tokens") if isinstance(found, dict) else None
    if not isinstance(entries, list) or not entries:
        raise TokenError(f"tokens={path} has no list `tokens`; write `tokens:` and a list of name and token")
    for place, entry in enumerate(entries):
        yield _entry(entry, f"tokens={path}: entry {place + 1}", default)


def _entry(entry: Any, where: str, default: Limits) -> tuple[str, Holder]:
    known = {"name", "token", "sha256", *(each.name for each in fields(Limits))}
    if not isinstance(entry, dict) or not isinstance(entry.get("name"), str) or not entry["name"]:
        raise TokenError(f"{where} has no name; give name and token")
    if set(entry) - known:
        raise TokenError(f"{where} has '{min(map(str, set(entry) - known))}'; known: {', '.join(sorted(known))}")
    secret, digest = str(entry.get("token", "")), str(entry.get("sha256", "")).lower()
    if bool(secret) == bool(digest):
        raise TokenError(f"{where} ('{entry['name']}') needs either token or sha256")
    if digest and (len(digest) != 64 or set(digest) - set("0123456789abcdef")):
        raise TokenError(f"{where} ('{entry['name']}'): sha256 is no sha256 in hexadecimal")
    given = {each.name: entry.get(each.name, getattr(default, each.name)) for each in fields(Limits)}
    for name, value in given.items():
        if isinstance(value, bool) or not isinstance(value, int | float) or not 0 <= value <= 1e9:
            raise TokenError(f"{where} ('{entry['name']}'): {name}={value!r} must be a number from 0 (no limit)")
    limits = Limits(float(given["requests_per_minute"]), int(given["concurrent"]))
    return digest or _digest(secret), Holder(entry["name"], limits)


def _digest(token: str) -> str:
    return hashlib.sha256(token.encode("utf-8", "surrogateescape")).hexdigest()
