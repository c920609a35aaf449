"""The form of an audit log: JSON lines in a chain of sha256, and the head that says where the chain ends.

A line is `{"n":3,"previous":…,"time":…,"event":…,…,"sha256":…}`. Its `sha256` is that of its own bytes up to there,
its `previous` the `sha256` of the line before. The head says how many lines there are and the last one's `sha256`,
and carries the signature of an earlier head.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from fedkd.checkpoints.manifest import CheckpointError

LOG_NAME, HEAD_NAME = "audit.jsonl", "audit.head.json"
FIRST = "0" * 64  # what the first line has for `previous`
SEALED = re.compile(rb'(\{.*),"sha256":"([0-9a-f]{64})"\}')


class AuditError(CheckpointError):
    """An audit log that is missing, or that was changed."""


@dataclass(frozen=True)
class Verdict:
    """`problem` says what is wrong, '' when nothing is; `lines` hold up to there, the last with digest `last`.

    `unheaded` lines follow well on those that the head covers. `signer` signed a head that covers `signed` lines:
    `key:FINGERPRINT`, '' when nobody did; `checked` when that signature was verified.
    """

    lines: int
    last: str
    problem: str = ""
    unheaded: int = 0
    signer: str = ""
    signed: int = 0
    checked: bool = False


def sealed(facts: dict[str, Any]) -> tuple[bytes, str]:
    """The line of `facts` with its own digest, and that digest."""
    body = json.dumps(facts, allow_nan=False, separators=(",", ":")).encode()[:-1]
    digest = hashlib.sha256(body).hexdigest()
    return body + f',"sha256":"{digest}"}}\n'.encode(), digest


def claim(lines: int, digest: str) -> bytes:
    """The bytes that a signature of a head covers."""
    return f"fedkd audit head: {lines} lines, sha256 {digest}\n".encode()


def read_head(run: Path) -> dict[str, Any]:
    """What RUN/audit.head.json says; {} when it is not there or cannot be read."""
    path = run / HEAD_NAME
    try:
        head = json.loads(path.read_text(encoding="utf-8")) if path.is_file() else {}
    except ValueError:
        return {}
    return head if isinstance(head, dict) else {}


def read_lines(run: Path) -> bytes:
    """The bytes of RUN/audit.jsonl; AuditError when there is no log."""
    path = run / LOG_NAME
    if not path.is_file():
        raise AuditError(f"'{run}' has no {LOG_NAME}; give the folder of a run, e.g. runs/quickstart")
    return path.read_bytes()


def parsed(data: bytes) -> list[dict[str, Any]]:
    """The facts of all lines that are sealed, verified or not."""
    found = []
    for line in data.split(b"\n"):
        match = SEALED.fullmatch(line)
        if match is not None and _own_digest(match):
            with contextlib.suppress(ValueError):
                found.append(json.loads(line))
    return found


def check_lines(data: bytes, head: dict[str, Any]) -> Verdict:
    """Follow the chain line by line, and then to the head."""
    lines = data.split(b"\n")
    torn = lines.pop()
    digests = [FIRST]
    for number, line in enumerate(lines, 1):
        problem = _problem(number, line, digests[-1])
        if problem:
            return Verdict(number - 1, digests[-1], problem)
        digests.append(digest_of(line))
    count, last = len(lines), digests[-1]
    if torn:
        return Verdict(count, last, f"line {count + 1} is torn: it does not end; if the run was killed, resume it")
    covered, said = head.get("lines", 0), head.get("sha256", FIRST)
    if type(covered) is not int or covered < 0 or (not head and count > 1):
        return Verdict(count, last, f"{HEAD_NAME} is missing or was changed: it does not say how many lines there are")
    if covered > count:
        return Verdict(count, last, f"line {count + 1} was removed: the head says that there are {covered} lines")
    if digests[covered] != said:
        return Verdict(
            count, last, f"line {covered} is not the one that the head names; {HEAD_NAME} or it was replaced"
        )
    if covered < count:
        problem = f"line {covered + 1} was added behind the head; if the run was killed, resume it"
        return Verdict(count, last, problem, unheaded=count - covered)
    return Verdict(count, last)


def digest_of(line: bytes) -> str:
    """The sha256 that a line says of itself."""
    match = SEALED.fullmatch(line)
    return match[2].decode() if match else ""


def _own_digest(match: re.Match[bytes]) -> bool:
    return hashlib.sha256(match[1]).hexdigest().encode() == match[2]


def _problem(number: int, line: bytes, last: str) -> str:
    """What is wrong with a line after one whose digest is `last`; '' when nothing is."""
    match = SEALED.fullmatch(line)
    if match is None or not _own_digest(match):
        return f"line {number} was changed or inserted: its digest is not its own"
    try:
        facts = json.loads(line)
        n, previous = int(facts["n"]), str(facts["previous"])
    except (ValueError, KeyError, TypeError):
        return f"line {number} was inserted: it is no line of an audit log"
    if n > number:
        return f"line {number} was removed or moved: line {n} is in its place"
    if n < number:
        return f"line {number} was inserted: it is another line {n}"
    if previous != last:
        return f"line {max(1, number - 1)} was replaced: line {number} was written after another one"
    return ""
