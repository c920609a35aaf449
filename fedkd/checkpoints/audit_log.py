"""The audit log of a run, written: who gave what to which checkpoint, what was refused, what failed and went on."""

from __future__ import annotations

import base64
import hashlib
import json
import os
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from fedkd.checkpoints.audit_chain import HEAD_NAME, LOG_NAME, AuditError, check_lines, claim, read_head, sealed
from fedkd.checkpoints.blobs import write_atomically
from fedkd.checkpoints.signing import key_claim, private_key


class AuditLog:
    """RUN/audit.jsonl, open for adding; with a `signing_key` (PEM) its head can be signed.

    Opening mends what a kill left: a torn last line is taken away, and that is recorded. Raises AuditError when the
    log was changed since it was written.
    """

    def __init__(self, run: Path, signing_key: Path | None = None) -> None:
        self.run, self.path, self.signing_key = run, run / LOG_NAME, signing_key
        data = self.path.read_bytes() if self.path.is_file() else b""
        end = data.rfind(b"\n") + 1
        whole, torn = data[:end], data[end:]
        verdict = check_lines(whole, read_head(run))
        if verdict.problem and not verdict.unheaded:
            raise AuditError(
                f"'{self.path}': {verdict.problem}; find out why, then move it and {HEAD_NAME} away to begin a new log"
            )
        self.lines, self.last = verdict.lines, verdict.last
        if torn:
            with self.path.open("r+b") as stream:
                stream.truncate(end)
        if torn or verdict.unheaded:
            digest = hashlib.sha256(torn).hexdigest()
            self.add("mended", torn_bytes=len(torn), torn_digest=digest, lines_after_head=verdict.unheaded)

    def add(self, event: str, **facts: Any) -> None:
        """Add a line; it is on the disk when this returns."""
        now = datetime.now(UTC).isoformat(timespec="milliseconds")
        line, self.last = sealed({"n": self.lines + 1, "previous": self.last, "time": now, "event": event, **facts})
        self.path.parent.mkdir(parents=True, exist_ok=True)
        with self.path.open("ab") as stream:
            stream.write(line)
            stream.flush()
            os.fsync(stream.fileno())
        self.lines += 1
        self._write_head(read_head(self.run).get("signed"))

    def sign_head(self) -> None:
        """Sign how many lines there are and the last one's digest, if there is a key."""
        if self.signing_key is None:
            return
        from cryptography.hazmat.primitives import hashes
        from cryptography.hazmat.primitives.asymmetric import ec

        signature = private_key(self.signing_key).sign(claim(self.lines, self.last), ec.ECDSA(hashes.SHA256()))
        signed = {"lines": self.lines, "sha256": self.last, "key": key_claim(self.signing_key)}
        self._write_head({**signed, "signature": base64.b64encode(signature).decode()})

    def _write_head(self, signed: dict[str, Any] | None) -> None:
        head = {"lines": self.lines, "sha256": self.last, "signed": signed}
        write_atomically(self.run / HEAD_NAME, json.dumps(head) + "\n")
