"""Durable state of a run: what each finished phase left, so that a killed server resumes where it was."""

from __future__ import annotations

import hashlib
import json
import os
import time
import uuid
from collections.abc import Callable
from pathlib import Path
from typing import Any


class RunState:
    """Files below RUN/state/ and the event log RUN/progress.jsonl; every write is atomic."""

    def __init__(self, run: Path) -> None:
        self.run = run
        self.folder = run / "state"
        self.folder.mkdir(parents=True, exist_ok=True)

    def round_folder(self, number: int) -> Path:
        """Where a round keeps its phases and payload files."""
        return self.folder / f"round-{number:03d}"

    def write_bytes(self, path: Path, data: bytes) -> None:
        """Write a payload file; it appears whole or not at all."""
        path.parent.mkdir(parents=True, exist_ok=True)
        part = path.with_name(f".{path.name}.{uuid.uuid4().hex[:8]}.part")
        with part.open("wb") as stream:
            stream.write(data)
            stream.flush()
            os.fsync(stream.fileno())
        os.replace(part, path)

    def finish(self, number: int, phase: str, facts: dict[str, Any]) -> None:
        """Record that a phase is done; its payload files have to be written before."""
        text = json.dumps(facts, indent=1, allow_nan=False)
        self.write_bytes(self.round_folder(number) / f"{phase}.json", text.encode())

    def finished(self, number: int, phase: str) -> dict[str, Any] | None:
        """What `finish` recorded for a phase, or None; round 0 holds what comes before the first round."""
        path = self.round_folder(number) / f"{phase}.json"
        return json.loads(path.read_text(encoding="utf-8")) if path.is_file() else None

    def event(self, kind: str, **facts: Any) -> None:
        """Append one line to progress.jsonl."""
        line = json.dumps({"time": time.time(), "event": kind, **facts})
        with (self.run / "progress.jsonl").open("a", encoding="utf-8") as stream:
            stream.write(line + "\n")

    def progress(self, number: int, phase: str) -> Callable[[int, int], None]:
        """A progress callable that logs at most two events a second."""
        last = [0.0]

        def report(done: int, total: int) -> None:
            now = time.monotonic()
            if now - last[0] >= 0.5 or done >= total:
                last[0] = now
                self.event("progress", round=number, phase=phase, done=done, total=total)

        return report


def seed_of(*parts: int | str) -> int:
    """A 31-bit seed from what names a piece of work: run seed, round, role, index. Never from node ids."""
    return int.from_bytes(hashlib.sha256("/".join(map(str, parts)).encode()).digest()[:4], "big") >> 1
