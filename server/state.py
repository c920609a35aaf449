"""Durable state of a run: what each finished phase left, so that a killed server resumes where it was."""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import resource
import sys
import time
import uuid
from collections.abc import Callable
from pathlib import Path
from typing import Any

PHASES = ("describe", "refresh", "synthesise", "finetune", "distil", "publish", "redistribute")  # of a round


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

    def append(self, path: Path, facts: dict[str, Any]) -> None:
        """Add a line of JSON to a file; one that a kill left torn stays a line of its own."""
        path.parent.mkdir(parents=True, exist_ok=True)
        with path.open("a+b") as stream:
            if stream.seek(0, os.SEEK_END):
                stream.seek(-1, os.SEEK_END)
                torn = stream.read(1) != b"\n"
                stream.write(b"\n" * torn)
            stream.write(json.dumps(facts, allow_nan=False).encode() + b"\n")

    def lines(self, path: Path) -> list[dict[str, Any]]:
        """What `append` added to a file, without lines that a kill left torn."""
        found = []
        for line in path.read_bytes().splitlines() if path.is_file() else []:
            with contextlib.suppress(ValueError):
                found.append(json.loads(line))
        return found

    def event(self, kind: str, **facts: Any) -> None:
        """Append one line to progress.jsonl, with what this thread has computed and this process has taken so far."""
        now = {"time": time.time(), "cpu_s": round(time.thread_time(), 4), "peak_bytes": peak_bytes()}
        self.append(self.run / "progress.jsonl", {**now, "event": kind, **facts})

    def progress(self, number: int, phase: str) -> Callable[..., None]:
        """A progress callable `(done, total, **facts)` that logs at most two events a second."""
        last = [0.0]

        def report(done: int, total: int, **facts: Any) -> None:
            now = time.monotonic()
            if now - last[0] >= 0.5 or done >= total:
                last[0] = now
                self.event("progress", round=number, phase=phase, done=done, total=total, **facts)

        return report


def peak_bytes() -> int:
    """The most memory (RSS, bytes) that this process has had since it began."""
    unit = 1 if sys.platform == "darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit


def seed_of(*parts: int | str) -> int:
    """A 31-bit seed from what names a piece of work: run seed, round, role, index. Never from node ids."""
    return int.from_bytes(hashlib.sha256("/".join(map(str, parts)).encode()).digest()[:4], "big") >> 1
