"""The edge's service for sets: whose token may write what, digests, sizes, and that nothing is given away."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Iterator
from pathlib import Path

import pytest
from fastapi.testclient import TestClient

from fedkd.serving.errors import EdgeFault
from fedkd.serving.sets_http import _alone, create_sets_app, users_book
from fedkd.serving.spool import KEPT, Spool
from fedkd.serving.tokens import TokenBook, TokenError, book_of

DATA = b"a set" * 100
DIGEST = hashlib.sha256(DATA).hexdigest()
PATH = f"/v1/sets/ann/{DIGEST}"
ANN, BOB = {"Authorization": "Bearer of-ann"}, {"Authorization": "Bearer of-bob"}


@pytest.fixture()
def client(tmp_path: Path) -> Iterator[TestClient]:
    app = create_sets_app(tmp_path / "spool", book_of({"ann": "of-ann", "bob": "of-bob"}), 1000)
    with TestClient(app) as client:
        yield client


def files(tmp_path: Path) -> list[str]:
    return sorted(str(path.relative_to(tmp_path / "spool")) for path in (tmp_path / "spool").rglob("*.*"))


def test_a_set_is_taken_once_and_told_of_but_never_given_away(client: TestClient, tmp_path: Path) -> None:
    assert client.get(PATH, headers=ANN).status_code == 404
    assert client.put(PATH, content=DATA, headers=ANN).status_code == 201
    assert client.put(PATH, content=DATA, headers=ANN).status_code == 200
    answer = client.get(PATH, headers=ANN)
    assert answer.json() == {"digest": DIGEST, "bytes": len(DATA)}
    assert files(tmp_path) == [f"ann/{DIGEST}.parquet"]
    assert Spool(tmp_path / "spool").path("ann", DIGEST).read_bytes() == DATA


def test_another_users_token_neither_writes_nor_reads_nor_overwrites(client: TestClient, tmp_path: Path) -> None:
    assert client.put(PATH, content=DATA, headers=BOB).status_code == 403 and files(tmp_path) == []
    client.put(PATH, content=DATA, headers=ANN)
    before = Spool(tmp_path / "spool").path("ann", DIGEST).stat()
    for answer in (client.get(PATH, headers=BOB), client.put(PATH, content=b"other", headers=BOB)):
        assert answer.status_code == 403 and answer.json()["error"]["message"] == "this token is another user's"
    assert Spool(tmp_path / "spool").path("ann", DIGEST).stat() == before


def test_no_token_and_other_methods_are_refused(client: TestClient) -> None:
    assert client.put(PATH, content=DATA).status_code == 401
    assert client.get(PATH, headers={"Authorization": "Bearer guess"}).status_code == 401
    assert client.delete(PATH, headers=ANN).status_code == 405


def test_bytes_of_another_digest_leave_nothing(client: TestClient, tmp_path: Path) -> None:
    answer = client.put(PATH, content=b"something else", headers=ANN)
    assert answer.status_code == 422 and "another sha256" in answer.json()["error"]["message"]
    assert files(tmp_path) == []


@pytest.mark.parametrize("told", [True, False])
def test_too_large_a_set_is_refused_whether_or_not_it_says_its_length(
    client: TestClient, tmp_path: Path, told: bool
) -> None:
    data = b"x" * 1001
    content = data if told else iter([data[:500], data[500:]])
    path = f"/v1/sets/ann/{hashlib.sha256(data).hexdigest()}"
    assert client.put(path, content=content, headers=ANN).status_code == 413
    assert files(tmp_path) == []


@pytest.mark.parametrize("path", ["/v1/sets/ann/abc", f"/v1/sets/ann/{'A' * 64}", f"/v1/sets/ann/..%2f{DIGEST}"])
def test_a_path_that_is_no_digest_is_refused(client: TestClient, path: str) -> None:
    assert client.put(path, content=DATA, headers=ANN).status_code in (404, 422)


def test_a_token_cannot_fill_the_disk(client: TestClient, tmp_path: Path) -> None:
    made = [str(number).encode() for number in range(KEPT + 2)]
    for place, data in enumerate(made):
        path = Spool(tmp_path / "spool").path("ann", hashlib.sha256(data).hexdigest())
        client.put(f"/v1/sets/ann/{path.stem}", content=data, headers=ANN)
        os.utime(path, (place, place))
    kept = {f"ann/{hashlib.sha256(data).hexdigest()}.parquet" for data in made[2:]}
    assert set(files(tmp_path)) == kept
    coming: set[str] = set()
    with _alone(coming, "ann"), pytest.raises(EdgeFault, match="try again"), _alone(coming, "ann"):
        pass
    assert coming == set()


def test_what_a_kill_left_half_written_is_swept_at_the_next_start(tmp_path: Path) -> None:
    (tmp_path / "spool/ann").mkdir(parents=True)
    (tmp_path / "spool/ann/.left.part").write_bytes(b"half")
    create_sets_app(tmp_path / "spool", book_of({"ann": "of-ann"}), 1000)
    assert list((tmp_path / "spool/ann").iterdir()) == []


def test_a_service_without_tokens_or_with_a_name_that_is_no_users_does_not_start(tmp_path: Path) -> None:
    with pytest.raises(TokenError, match="no user has a token"):
        create_sets_app(tmp_path, TokenBook(), 1000)
    path = tmp_path / "users.yaml"
    path.write_text("tokens: [{name: ../ann, token: secret}]")
    with pytest.raises(TokenError, match="no user's name"):
        users_book(str(path))
