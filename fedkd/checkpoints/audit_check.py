"""Whether an audit log is as it was written, and whose signature its head carries."""

from __future__ import annotations

import base64
import binascii
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from fedkd.checkpoints.audit_chain import HEAD_NAME, Verdict, check_lines, claim, digest_of, read_head, read_lines
from fedkd.checkpoints.signing import key_claim, public_key


def verify_log(run: Path, keys: Sequence[Path] = ()) -> Verdict:
    """Verify RUN/audit.jsonl against itself and its head; with public `keys` (PEM) the head has to be signed by one.

    The verdict names the first line that was changed, removed or inserted. AuditError when there is no log.
    """
    data, head = read_lines(run), read_head(run)
    verdict = check_lines(data, head)
    return verdict if verdict.problem else _check_signature(data.split(b"\n"), head.get("signed"), verdict, keys)


def _check_signature(lines: list[bytes], signed: Any, verdict: Verdict, keys: Sequence[Path]) -> Verdict:
    """The verdict on a sound chain, with what the signature of its head says."""
    if not signed:
        missing = f"no head of the log was signed, or {HEAD_NAME} was replaced; the run needs run.signing_key"
        return replace(verdict, problem=missing if keys else "")
    try:
        count, digest, signer = int(signed["lines"]), str(signed["sha256"]), str(signed["key"])
        signature = base64.b64decode(str(signed["signature"]), validate=True)
    except (KeyError, TypeError, ValueError, binascii.Error):
        return replace(verdict, problem=f"{HEAD_NAME} was changed: its signature cannot be read")
    verdict = replace(verdict, signer=signer, signed=count)
    if count > verdict.lines:
        return replace(verdict, problem=f"line {verdict.lines + 1} was removed: {count} lines were signed")
    if count < 1 or digest_of(lines[count - 1]) != digest:
        return replace(verdict, problem=f"line {max(1, count)} or one before was replaced: another was signed")
    if not keys:
        return verdict
    trusted = [key for key in keys if key_claim(key) == signer]
    if not trusted:
        return replace(verdict, problem=f"the head was signed with another key ({signer[:16]}…) than those given")
    from cryptography.exceptions import InvalidSignature
    from cryptography.hazmat.primitives import hashes
    from cryptography.hazmat.primitives.asymmetric import ec

    try:
        public_key(trusted[0]).verify(signature, claim(count, digest), ec.ECDSA(hashes.SHA256()))
    except InvalidSignature:
        return replace(verdict, problem=f"the signature of the head does not hold; {HEAD_NAME} was changed")
    return replace(verdict, checked=True)
