"""An audit log: any change, deletion, swap or insertion of a line is found; a kill in a line is mended."""

from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fedkd.checkpoints.audit_chain import HEAD_NAME, LOG_NAME, AuditError, parsed, read_lines, sealed
from fedkd.checkpoints.audit_check import verify_log
from fedkd.checkpoints.audit_log import AuditLog
from fedkd.checkpoints.signing import generate_keys

LINES = 6


@pytest.fixture(scope="module")
def written(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, bytes]:
    """A log of six lines, and its bytes; tests put the bytes back."""
    run = tmp_path_factory.mktemp("run")
    log = AuditLog(run)
    for index in range(LINES):
        log.add("gave", node=f"user-{index}", digest="ab" * 32, count=index)
    assert verify_log(run).problem == "" and verify_log(run).lines == LINES
    return run, read_lines(run)


def problem_of(run: Path, data: bytes) -> str:
    (run / LOG_NAME).write_bytes(data)
    return verify_log(run).problem


@settings(max_examples=200, deadline=None)
@given(place=st.floats(0, 1, exclude_max=True), other=st.integers(0, 255))
def test_any_changed_byte_is_found_and_its_line_named(written: tuple[Path, bytes], place: float, other: int) -> None:
    run, data = written
    at = int(place * len(data))
    changed = data[:at] + bytes([other]) + data[at + 1 :]
    problem = problem_of(run, changed)
    line = data[:at].count(b"\n") + 1
    assert (problem == "") == (changed == data)
    assert not problem or f"line {line} " in problem


@settings(max_examples=100, deadline=None)
@given(st.data())
def test_any_deleted_swapped_or_inserted_line_is_found(written: tuple[Path, bytes], draw: st.DataObject) -> None:
    run, data = written
    lines = data.splitlines(keepends=True)
    one, two = draw.draw(st.integers(0, LINES - 1)), draw.draw(st.integers(0, LINES - 1))
    without = lines[:one] + lines[one + 1 :]
    assert problem_of(run, b"".join(without)).startswith(f"line {one + 1} was removed")
    swapped = list(lines)
    swapped[one], swapped[two] = swapped[two], swapped[one]
    problem = problem_of(run, b"".join(swapped))
    assert (problem == "") == (one == two) and (one == two or f"line {min(one, two) + 1} was removed" in problem)
    anything = draw.draw(st.binary(max_size=60).filter(lambda text: b"\n" not in text)) + b"\n"
    for inserted in (lines[two], anything):
        problem = problem_of(run, b"".join([*lines[: one + 1], inserted, *lines[one + 1 :]]))
        twin = lines[one + 1 : one + 2] == [inserted]  # then which of the two was inserted is all the same
        early = inserted in lines[one + 2 :]
        assert f"line {one + 2 + twin} was {'removed or moved' if early else ''}" in problem
        assert early or "inserted" in problem


def test_a_forged_line_that_is_sealed_anew_breaks_the_chain(written: tuple[Path, bytes]) -> None:
    run, data = written
    lines, facts = data.splitlines(keepends=True), parsed(data)
    body = {key: value for key, value in facts[2].items() if key != "sha256"}
    forged = sealed({**body, "count": 999})[0]
    assert "line 3 was replaced" in problem_of(run, b"".join([*lines[:2], forged, *lines[3:]]))
    last = {key: value for key, value in facts[-1].items() if key != "sha256"}
    forged = sealed({**last, "count": 999})[0]
    assert f"line {LINES} is not the one that the head names" in problem_of(run, b"".join([*lines[:-1], forged]))
    more = sealed({**last, "n": LINES + 1, "previous": facts[-1]["sha256"]})[0]
    assert f"line {LINES + 1} was added behind the head" in problem_of(run, data + more)
    with pytest.raises(AuditError, match=r"line 3 was replaced.*move it"):
        problem_of(run, b"".join([*lines[:2], sealed({**body, "count": 9})[0], *lines[3:]]))
        AuditLog(run)


def test_a_line_torn_by_a_kill_is_mended_and_that_is_recorded(tmp_path: Path) -> None:
    log = AuditLog(tmp_path)
    log.add("gave", node="ann")
    log.add("gave", node="bob")
    path = tmp_path / LOG_NAME
    path.write_bytes(path.read_bytes() + b'{"n":3,"previous":"0')
    assert "line 3 is torn" in verify_log(tmp_path).problem
    AuditLog(tmp_path).add("resumed", phase="distil")
    lines = parsed(read_lines(tmp_path))
    assert [line["event"] for line in lines] == ["gave", "gave", "mended", "resumed"]
    assert lines[2]["torn_bytes"] == 20 and verify_log(tmp_path).problem == ""


def test_a_kill_between_line_and_head_is_mended_and_that_is_recorded(tmp_path: Path) -> None:
    log = AuditLog(tmp_path)
    log.add("gave", node="ann")
    before = (tmp_path / HEAD_NAME).read_bytes()
    log.add("gave", node="bob")
    (tmp_path / HEAD_NAME).write_bytes(before)
    assert "line 2 was added behind the head" in verify_log(tmp_path).problem
    AuditLog(tmp_path)
    assert parsed(read_lines(tmp_path))[-1]["lines_after_head"] == 1 and verify_log(tmp_path).problem == ""
    (tmp_path / HEAD_NAME).unlink()
    with pytest.raises(AuditError, match=f"{HEAD_NAME} is missing"):
        AuditLog(tmp_path)


def test_a_signed_head_gives_a_cut_log_away_even_when_the_head_is_mended_too(tmp_path: Path) -> None:
    private, public = generate_keys(tmp_path / "keys")
    other = generate_keys(tmp_path / "other")[1]
    run = tmp_path / "run"
    log = AuditLog(run, private)
    for index in range(4):
        log.add("gave", count=index)
    assert verify_log(run, [public]).problem.startswith("no head of the log was signed")
    log.sign_head()
    log.add("gave", count=4)
    verdict = verify_log(run, [other, public])
    assert verdict.problem == "" and verdict.checked and (verdict.signed, verdict.lines) == (4, 5)
    assert not verify_log(run).checked and "another key" in verify_log(run, [other]).problem
    signed = (run / HEAD_NAME).read_text()
    (run / HEAD_NAME).write_text(signed.replace('"signature": "ME', '"signature": "MF'))
    assert "signature" in verify_log(run, [public]).problem
    lines = read_lines(run).splitlines(keepends=True)
    (run / LOG_NAME).write_bytes(b"".join(lines[:3]))
    last = parsed(b"".join(lines[:3]))[-1]["sha256"]
    five = parsed(b"".join(lines))[-1]["sha256"]
    (run / HEAD_NAME).write_text(signed.replace('"lines": 5', '"lines": 3').replace(five, last))
    assert "line 4 was removed: 4 lines were signed" in verify_log(run).problem
