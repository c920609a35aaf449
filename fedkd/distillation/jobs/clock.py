"""How long a job's phases took, kept on disk through the lives of its processes."""

from __future__ import annotations

import json
import os
import time
from datetime import UTC, datetime
from pathlib import Path

from fedkd.training.loop import is_main_process

CLOCK = "clock.json"


class Clock:
    """Seconds of a job by phase, kept in RUN/clock.json through its processes' lives."""

    def __init__(self, run: Path) -> None:
        self.path, self.mark = run / CLOCK, time.monotonic()
        self.started = datetime.now(UTC).isoformat(timespec="seconds")
        self.seconds = {"pictures": 0.0, "training": 0.0, "evaluation": 0.0}
        if self.path.is_file():
            facts = json.loads(self.path.read_text("utf-8"))
            self.started, self.seconds = facts["started"], self.seconds | facts["seconds"]

    def lap(self, phase: str) -> None:
        """Add the time since the last lap to `phase`."""
        now = time.monotonic()
        self.seconds[phase] += now - self.mark
        self.mark = now
        if is_main_process():
            write_bytes(self.path, json.dumps({"started": self.started, "seconds": self.seconds}).encode())


def write_bytes(path: Path, data: bytes) -> None:
    """Write a file, whole or not at all."""
    path.parent.mkdir(parents=True, exist_ok=True)
    part = path.with_name(path.name + ".part")
    part.write_bytes(data)
    os.replace(part, path)
