"""Answers of a phase that are stored already: a server that was killed in the phase does not ask for them again."""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import Any

from server.exchange import Exchange
from server.state import RunState


class Answers:
    """A phase's stored answers: ROUND/PHASE.jsonl, a line an answer, and each answer's file.

    A line is written after its file, and says the file's sha256: what a crash left half done is asked for again.
    """

    def __init__(self, state: RunState, number: int, phase: str) -> None:
        self.state, self.folder = state, state.round_folder(number)
        self.path = self.folder / f"{phase}.jsonl"
        self.kept = {line["name"]: line for line in state.lines(self.path) if self._whole(line)}

    def _whole(self, line: dict[str, Any]) -> bool:
        path = self.folder / line["file"]
        return path.is_file() and hashlib.sha256(path.read_bytes()).hexdigest() == line["sha256"]

    def store(self, name: str, answer: dict[str, Any], path: Path, data: bytes, result: Exchange) -> str:
        """Write an answer's file and its line; returns the file's sha256."""
        self.state.write_bytes(path, data)
        digest = hashlib.sha256(data).hexdigest()
        line = {"name": name, "answer": answer, "file": str(path.relative_to(self.folder)), "sha256": digest}
        ways = {"up": result.up[name], "down": result.down[name], "edge": result.edge.get(name, 0)}
        self.state.append(self.path, line | ways)
        return digest

    def restore(self, result: Exchange) -> None:
        """Add to `result` what was stored before the server was stopped."""
        for name, line in self.kept.items():
            result.asked += 1
            result.answers[name] = line["answer"]
            result.up[name], result.down[name] = line["up"], line["down"]
            if line.get("edge"):
                result.edge[name] = line["edge"]
        result.answers = {name: result.answers[name] for name in sorted(result.answers)}
