"""Tokens are known by their digest, and each has its own limits."""

from __future__ import annotations

import hashlib
from pathlib import Path

import pytest

from fedkd.serving.errors import EdgeFault
from fedkd.serving.tokens import Holder, Limits, TokenError, token_book


def book(tmp_path: Path, text: str, **options: object):
    path = tmp_path / "tokens.yaml"
    path.write_text(text, encoding="utf-8")
    return token_book(path=str(path), **options)


def test_a_file_names_holders_by_token_or_by_its_digest(tmp_path: Path) -> None:
    digest = hashlib.sha256(b"two").hexdigest()
    found = book(
        tmp_path,
        "tokens:\n- {name: ann, token: one, requests_per_minute: 6, concurrent: 2}\n"
        f"- {{name: bob, sha256: {digest}}}\n",
        default=Limits(concurrent=5),
    )
    ann, bob = found.holder("Bearer one"), found.holder("bearer two")
    assert ann is not None and (ann.name, ann.limits) == ("ann", Limits(6, 2))
    assert bob is not None and (bob.name, bob.limits) == ("bob", Limits(0, 5))
    for wrong in ("", "Bearer", "Bearer three", "Basic one", "one", "Bearer \udcff"):
        assert found.holder(wrong) is None


def test_without_tokens_everybody_is_let_in() -> None:
    found = token_book()
    assert not found and found.holder("") is found.holder("Bearer x") is found.anybody


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("tokens: []", "no list `tokens`"),
        ("- a", "no list `tokens`"),
        ("tokens: {{", "is no YAML"),
        ("tokens: [{token: x}]", "entry 1 has no name"),
        ("tokens: [{name: a}]", "needs either token or sha256"),
        ("tokens: [{name: a, token: x, sha256: y}]", "needs either token or sha256"),
        ("tokens: [{name: a, sha256: y}]", "no sha256"),
        ("tokens: [{name: a, token: x, rpm: 3}]", "has 'rpm'; known: concurrent"),
        ("tokens: [{name: a, token: x, concurrent: -1}]", "concurrent=-1 must be a number"),
        ("tokens: [{name: a, token: x}, {name: b, token: x}]", "'b' has the token of 'a'"),
        ("tokens: [{name: a, token: x}, {name: a, token: y}]", "two tokens are called 'a'"),
    ],
)
def test_a_wrong_file_is_named_with_its_fix(tmp_path: Path, text: str, said: str) -> None:
    with pytest.raises(TokenError, match=said):
        book(tmp_path, text)


def test_a_missing_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(TokenError, match="cannot be read: No such file"):
        token_book(path=str(tmp_path / "none"))


def test_requests_a_minute_are_limited_and_come_back_with_time() -> None:
    now = 0.0
    holder = Holder("ann", Limits(requests_per_minute=2), clock=lambda: now)
    for _ in range(2):
        with holder.request():
            pass
    with pytest.raises(EdgeFault) as refused, holder.request():
        pass
    assert (refused.value.status, refused.value.code, refused.value.retry_after_s) == (429, "rate_limit_exceeded", 30.0)
    now = 30.0
    with holder.request():
        pass


def test_requests_at_once_are_limited_and_counted_down_after_a_failure() -> None:
    holder = Holder("ann", Limits(concurrent=1))
    with holder.request(), pytest.raises(EdgeFault, match="1 requests at once"), holder.request():
        pass
    with pytest.raises(RuntimeError), holder.request():
        raise RuntimeError
    assert holder.running == 0
