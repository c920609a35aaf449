"""`fedkd audit` through its verbs."""

from __future__ import annotations

from pathlib import Path

import pytest
from typer.testing import CliRunner

from fedkd.checkpoints.audit_chain import LOG_NAME
from fedkd.checkpoints.audit_log import AuditLog
from fedkd.cli.main import app


@pytest.fixture()
def run(tmp_path: Path) -> Path:
    log = AuditLog(tmp_path / "run")
    log.add("gave", round=1, phase="synthesise", node="ann", edge="e0", digest="ab" * 32, count=12)
    log.add("refused", round=1, phase="finetune", node="e0", why="not finite")
    return tmp_path / "run"


def call(*arguments: str) -> tuple[int, str]:
    done = CliRunner().invoke(app, ["audit", *arguments])
    return done.exit_code, " ".join((done.output + str(done.stderr)).split())


def test_a_sound_log_holds_and_a_changed_line_is_named_with_exit_code_1(run: Path) -> None:
    code, text = call("verify", str(run))
    assert code == 0 and text.startswith("holds: 2 lines") and "not signed" in text
    path = run / LOG_NAME
    path.write_text(path.read_text().replace('"count":12', '"count":13'))
    code, text = call("verify", str(run))
    assert code == 1 and "FAILS: line 1 was changed" in text


def test_the_table_names_who_gave_what_and_what_was_refused(run: Path) -> None:
    code, text = call("show", str(run))
    assert code == 0 and "ann/e0" in text and "count=12" in text and "digest=abababababab…" in text
    code, text = call("show", str(run), "--event", "refused")
    assert "not finite" in text and "ann" not in text
    code, text = call("show", str(run), "--event", "refusd")
    assert code == 2 and "did you mean 'refused'?" in text


def test_a_folder_without_a_log_is_one_line(tmp_path: Path) -> None:
    code, text = call("verify", str(tmp_path))
    assert code == 2 and "has no audit.jsonl" in text
