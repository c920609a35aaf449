"""Lineage goes back to the root through what gc removed, and a difference counts each content once."""

from __future__ import annotations

from pathlib import Path

import pytest

from fedkd.checkpoints.collection import collect
from fedkd.checkpoints.lineage import diff, lineage
from fedkd.checkpoints.manifest import CheckpointError
from fedkd.checkpoints.registry import Registry
from tests.checkpoints.folders import make_model, write_weights


@pytest.fixture()
def registry(tmp_path: Path) -> Registry:
    """Four versions of m, each the child of the one before."""
    registry, model = Registry(tmp_path / "r"), make_model(tmp_path / "model", "0")
    registry.publish(model, name="m")
    for number in range(1, 4):
        write_weights(model / "unet/w.safetensors", str(number))
        registry.publish(model, name="m", parents=[f"m:v{number - 1}"], round=number, edges=["edge-0"])
    return registry


def test_lineage_goes_back_to_the_root(registry: Registry) -> None:
    found = lineage(registry, "m")
    assert [step.reference for step in found] == ["m:v3", "m:v2", "m:v1", "m:v0"]
    assert {step.state for step in found} == {"here"} and found[1].depth == 1
    assert found[0].manifest is not None and found[0].manifest.edges == ("edge-0",)


def test_lineage_knows_what_gc_removed_and_what_was_never_here(registry: Registry, tmp_path: Path) -> None:
    write_weights(tmp_path / "model/unet/w.safetensors", "4")
    registry.publish(tmp_path / "model", name="m", parents=["m:v3", "other:v7", "a text"])
    assert collect(registry).versions == ("m:v1", "m:v2")
    states = {step.reference: step.state for step in lineage(registry, "m")}
    assert states == {
        "m:v4": "here",
        "m:v3": "here",
        "other:v7": "elsewhere",
        "a text": "elsewhere",
        "m:v2": "collected",
        "m:v1": "collected",
        "m:v0": "here",
    }


def test_a_difference_names_files_and_counts_each_content_once(registry: Registry, tmp_path: Path) -> None:
    model = tmp_path / "model"
    write_weights(model / "unet/w.safetensors", "4", 1000)
    write_weights(model / "more/a.safetensors", "4", 1000)
    (model / "vae/w.safetensors").rename(model / "vae/x.safetensors")
    registry.publish(model, name="m", parents=["m:v3"])
    found = diff(registry, "m:v3", "m:v4")
    assert [entry.path for entry in found.added] == ["more/a.safetensors", "vae/x.safetensors"]
    assert [entry.path for entry in found.removed] == ["vae/w.safetensors"]
    assert [new.path for _, new in found.changed] == ["unet/w.safetensors"]
    assert found.new_bytes == (model / "unet/w.safetensors").stat().st_size
    assert found.shared_bytes == sum((model / p).stat().st_size for p in ("vae/x.safetensors", "model_index.json"))


def test_a_version_does_not_differ_from_itself(registry: Registry) -> None:
    found = diff(registry, "m:v3", "m:latest")
    assert (found.added, found.removed, found.changed, found.new_bytes) == ((), (), (), 0)
    with pytest.raises(CheckpointError, match="known versions"):
        diff(registry, "m:v3", "m:v9")
