"""A registry and an edge's cache are whole after kill -9 at any touch of a file, full disks and damaged blobs."""

from __future__ import annotations

import multiprocessing
from pathlib import Path

import numpy as np
import pytest

from fedkd.checkpoints.collection import collect
from fedkd.checkpoints.manifest import CheckpointError
from fedkd.checkpoints.registry import Registry
from fedkd.cli.benchmarks.registry_faults import NAME, OPERATIONS, Site
from fedkd.cli.benchmarks.registry_ledger import Damage, Ledger, look_at, make_model
from fedkd.cli.benchmarks.registry_trials import Trials

UNHARMED = "0 corrupt versions loadable, 0 published versions lost, 0 repairs failed"


@pytest.fixture()
def trials(tmp_path: Path) -> Trials:
    """A cloud, a mirror and an edge, each with a version."""
    made = Trials(Site(tmp_path, str(tmp_path / "cloud")), print, seed=1)
    for operation in OPERATIONS:
        made.finish(operation, operation)
    return made


@pytest.mark.parametrize("operation", OPERATIONS)
def test_nothing_is_lost_or_half_after_a_kill_at_any_touch_of_a_file(operation: str, trials: Trials) -> None:
    last = trials.children.touches[operation]
    for touch in range(1, last, max(1, last // 12)):
        trials.prepare(operation)
        before = trials.site.cache.digest
        ended = trials.children.run(operation, trials.site, kill="touch", touch=touch)
        trials.settle(operation, ended.text if ended.how == "done" else "")
        trials.look(operation, before, swapped=operation == "swap")
        trials.finish(operation, operation)
    assert trials.total() == UNHARMED


def test_kills_at_random_moments(trials: Trials) -> None:
    trials.kills(5)
    assert trials.total() == UNHARMED
    assert sum(counts["touch"] + counts["moment"] for counts in trials.counts.values()) >= 5


def test_a_full_disk_is_one_line_and_leaves_what_was_published(trials: Trials) -> None:
    trials.full_disks(3)
    assert trials.total() == UNHARMED and trials.counts["full disk"]["refused"] >= 1


def test_blobs_that_are_cut_short_or_have_a_flipped_bit_are_refused_and_repaired(trials: Trials) -> None:
    trials.damaged_blobs(3)
    assert trials.total() == UNHARMED


def test_the_trials_see_a_version_that_is_lost_half_or_wrong(trials: Trials) -> None:
    folder, reference = trials.site.cloud.folder(NAME), trials.site.cloud.manifest(NAME).reference
    for name, data in (("model_index.json", b'{"a": 1}'), ("manifest.json", b"{")):
        kept = (folder / name).read_bytes()
        (folder / name).unlink()
        for blob in trials.site.cloud.manifest(reference).files if name != "manifest.json" else ():
            if blob.path == name:
                trials.site.cloud.blobs.path(blob.sha256).unlink()
        (folder / name).write_bytes(data)
        found = Damage()
        look_at(trials.site.cloud, trials.cloud, found)
        assert found.corrupt == 1
        (folder / name).unlink()
        (folder / name).write_bytes(kept)
    folder.rename(folder.with_name("elsewhere"))
    found = Damage()
    look_at(trials.site.cloud, trials.cloud, found)
    assert found.lost == 2  # the version, and what latest points at


def publish_often(root: Path, number: int) -> None:
    """Three versions of the one name, from a process of its own."""
    registry, folder = Registry(root / "cloud"), root / f"model-{number}"
    for turn in range(3):
        make_model(folder, np.random.default_rng((number, turn)), {"unet": 20_000})
        latest = registry.alias(NAME, "latest")
        registry.publish(folder, name=NAME, parents=[f"{NAME}:{latest}"] if latest else [])


def collect_often(root: Path) -> None:
    """gc, again and again."""
    for _ in range(6):
        collect(Registry(root / "cloud"))


def test_publishers_and_gc_at_the_same_time_leave_what_is_needed(tmp_path: Path) -> None:
    context = multiprocessing.get_context("forkserver")
    (tmp_path / "cloud").mkdir()
    crowd = [context.Process(target=publish_often, args=(tmp_path, number)) for number in range(3)]
    crowd.append(context.Process(target=collect_often, args=(tmp_path,)))
    for process in crowd:
        process.start()
    for process in crowd:
        process.join()
    assert [process.exitcode for process in crowd] == [0, 0, 0, 0]
    registry, found = Registry(tmp_path / "cloud"), Damage()
    look_at(registry, Ledger(), found)
    assert (found.corrupt, found.lost) == (0, 0)
    assert len(registry.versions(NAME)) + len(set(registry.collected(NAME)) - set(registry.versions(NAME))) == 9
    registry.resolve(NAME)


def test_an_operation_that_fails_by_itself_is_told(trials: Trials, tmp_path: Path) -> None:
    lonely = Site(tmp_path / "lonely", str(tmp_path / "nowhere"))
    ended = trials.children.run("pull", lonely)
    assert ended.how == "refused" and "\n" not in ended.text
    with pytest.raises(CheckpointError):
        lonely.mirror.resolve(NAME)
