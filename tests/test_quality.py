"""The linters are tests: what they find is a failure."""

import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent


@pytest.mark.parametrize("arguments", [["ruff", "check", "."], ["mypy"]], ids=["ruff", "mypy"])
def test_the_linter_finds_nothing(arguments):
    found = subprocess.run(
        [sys.executable, "-m", *arguments], cwd=ROOT, capture_output=True, text=True, timeout=240, check=False
    )
    assert found.returncode == 0, found.stdout + found.stderr


def test_the_linter_reads_every_module():
    listing = [sys.executable, "-m", "ruff", "check", "--show-files", "."]
    told = subprocess.run(listing, cwd=ROOT, capture_output=True, text=True, check=True)
    read = {Path(line) for line in told.stdout.splitlines()}
    ours = {path for room in ("fedkd", "clients", "server", "tests") for path in (ROOT / room).rglob("*.py")}
    assert ours and ours <= read
