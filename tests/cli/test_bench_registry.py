"""What `fedkd bench registry` measures beside faults (those: tests/checkpoints/test_crash.py)."""

from __future__ import annotations

import multiprocessing
from pathlib import Path

import pytest

from fedkd.checkpoints.manifest import CheckpointError
from fedkd.cli.benchmarks import registry_transfer as transfer
from fedkd.cli.benchmarks.registry import KILLS, QUICK_KILLS, SECOND_BOUND, SHIPPED_MODEL, TINY_RANK, wanted
from fedkd.cli.benchmarks.registry_student import base_and_student
from fedkd.cli.benchmarks.registry_trust import refusals
from fedkd.cli.benchmarks.request import Request


def test_the_number_of_kills_is_what_the_override_says() -> None:
    assert wanted(Request("registry")) == KILLS >= 500
    assert wanted(Request("registry", quick=True)) == QUICK_KILLS
    assert wanted(Request("registry", overrides=["kills=7"])) == 7
    for override in ("kills=0", "kills=x", "run.seed=1"):
        with pytest.raises(CheckpointError, match="kills=N"):
            wanted(Request("registry", overrides=[override]))


def test_a_second_version_with_another_lora_moves_little_whatever_the_store(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    moved, _ = transfer.bytes_moved(base_and_student(SHIPPED_MODEL, tmp_path, TINY_RANK), tmp_path, "token")
    assert {"file", "http"} <= set(moved)
    for place, (first, second) in moved.items():
        with capsys.disabled():
            print(f"\n{place}: first version {first} bytes, second {second} bytes ({100 * second / first:.2f}%)")
        assert 0 < 100 * second / first < SECOND_BOUND


def test_32_pulls_at_once_from_four_processes_cause_one_transfer(tmp_path: Path) -> None:
    transfers, succeeded = transfer.at_once(tmp_path, "token", multiprocessing.get_context("forkserver"))
    assert succeeded == transfer.PULLS and 1.0 <= transfers < 1.01


def test_an_edge_refuses_what_it_must_not_take_and_serves_on(tmp_path: Path) -> None:
    offered, refused = refusals(tmp_path)
    assert offered == refused == 4  # another key, a pickle, and a bit in each of the two new blobs


def test_pull_and_curl_move_the_same_bytes(tmp_path: Path) -> None:
    speeds = transfer.throughput(tmp_path, "token", 2**20, repeats=1)
    assert all(len(values) == 1 and values[0] > 0 for values in speeds.values())
    assert transfer.share_of_curl(speeds) > 0
