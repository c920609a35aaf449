"""Students as parent plus LoRA: merged to the same bits everywhere, moved as the LoRA file alone."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.numpy import load_file, save, save_file

from fedkd.checkpoints.cache import CheckpointCache
from fedkd.checkpoints.derivation import derive_student, to_fetch
from fedkd.checkpoints.lineage import diff
from fedkd.checkpoints.lora_merge import LORA_NAME, merge_lora
from fedkd.checkpoints.manifest import CheckpointError, Manifest
from fedkd.checkpoints.registry import Registry
from fedkd.checkpoints.transfer import pull, push
from tests.checkpoints.web import registry_at

WIDTH, RANK = 512, 2


def make_base(folder: Path, dtype: str = "float16") -> Path:
    """A pipeline folder whose UNet has a square layer, a convolution and a bias."""
    random = np.random.default_rng(0)
    weights = {
        "mid.to_q.weight": random.normal(size=(WIDTH, WIDTH)).astype(dtype),
        "mid.to_q.bias": random.normal(size=WIDTH).astype(dtype),
        "mid.conv.weight": random.normal(size=(16, 8, 3, 3)).astype(dtype),
    }
    (folder / "unet").mkdir(parents=True)
    save_file(weights, folder / "unet" / "diffusion_pytorch_model.safetensors", metadata={"format": "pt"})
    (folder / "model_index.json").write_text(json.dumps({"_class_name": "StableDiffusionPipeline"}))
    return folder


def lora(seed: int, dtype: str = "float16") -> bytes:
    """A LoRA file for both layers."""
    random = np.random.default_rng(seed)
    shapes = {
        "unet.mid.to_q.lora_A.weight": (RANK, WIDTH),
        "unet.mid.to_q.lora_B.weight": (WIDTH, RANK),
        "unet.mid.conv.lora_A.weight": (RANK, 8, 3, 3),
        "unet.mid.conv.lora_B.weight": (16, RANK, 1, 1),
    }
    return save({key: (0.1 * random.normal(size=shape)).astype(dtype) for key, shape in shapes.items()})


def publish_student(registry: Registry, folder: Path, parent: Manifest, seed: int) -> Manifest:
    """The parent's child by another LoRA file, as the server publishes one."""
    folder.mkdir()
    (folder / "model_index.json").write_text(json.dumps({"_class_name": "StableDiffusionPipeline"}))
    derived = derive_student(registry.resolve(parent.reference), folder, lora(seed), "unet")
    return registry.publish(folder, name="m", parents=[parent.reference], derived=(*derived, *parent.derived))


@pytest.fixture()
def versions(tmp_path: Path) -> tuple[Registry, list[Manifest]]:
    """A registry with a base and two students, each made from the one before."""
    registry = Registry(tmp_path / "registry")
    made = [registry.publish(make_base(tmp_path / "base"), name="m")]
    for seed in (1, 2):
        made.append(publish_student(registry, tmp_path / f"student{seed}", made[-1], seed))
    return registry, made


@pytest.mark.parametrize("dtype", ["float16", "float32"])
def test_the_merge_is_w_plus_b_a(tmp_path: Path, dtype: str) -> None:
    base = make_base(tmp_path / "base", dtype) / "unet" / "diffusion_pytorch_model.safetensors"
    (tmp_path / LORA_NAME).write_bytes(lora(3))
    assert merge_lora(base, tmp_path / LORA_NAME, tmp_path / "merged.safetensors")
    before, merged = load_file(base), load_file(tmp_path / "merged.safetensors")
    halves = load_file(tmp_path / LORA_NAME)
    for module in ("mid.to_q", "mid.conv"):
        up = halves[f"unet.{module}.lora_B.weight"].astype("float64").reshape(-1, RANK)
        down = halves[f"unet.{module}.lora_A.weight"].astype("float64").reshape(RANK, -1)
        wanted = before[f"{module}.weight"].astype("float64") + (up @ down).reshape(before[f"{module}.weight"].shape)
        assert merged[f"{module}.weight"].dtype == before[f"{module}.weight"].dtype
        np.testing.assert_allclose(
            merged[f"{module}.weight"], wanted, rtol=2e-3 if dtype == "float16" else 1e-5, atol=1e-3
        )
    np.testing.assert_array_equal(merged["mid.to_q.bias"], before["mid.to_q.bias"])
    assert (tmp_path / "merged.safetensors").stat().st_size == base.stat().st_size


def test_bfloat16_is_rounded_as_torch_rounds_it(tmp_path: Path) -> None:
    import torch
    from safetensors.torch import load_file as load_torch
    from safetensors.torch import save_file as save_torch

    weight = torch.randn(32, 32, generator=torch.Generator().manual_seed(0)).to(torch.bfloat16)
    down, up = torch.randn(1, 32), torch.randn(32, 1)
    save_torch({"a.weight": weight}, tmp_path / "base.safetensors")
    save_torch({"unet.a.lora_A.weight": down, "unet.a.lora_B.weight": up}, tmp_path / LORA_NAME)
    merge_lora(tmp_path / "base.safetensors", tmp_path / LORA_NAME, tmp_path / "merged.safetensors")
    wanted = (weight.float() + up * down).to(torch.bfloat16)
    assert torch.equal(load_torch(tmp_path / "merged.safetensors")["a.weight"], wanted)


@settings(max_examples=25, deadline=None)
@given(rank=st.integers(1, 5), seed=st.integers(0, 1000))
def test_the_merge_adds_product_by_product(tmp_path_factory: pytest.TempPathFactory, rank: int, seed: int) -> None:
    folder, random = tmp_path_factory.mktemp("merge"), np.random.default_rng(seed)
    weight, up, down = (random.normal(size=s).astype("float32") for s in ((3, 4), (3, rank), (rank, 4)))
    save_file({"a.weight": weight}, folder / "base.safetensors")
    save_file({"unet.a.lora_A.weight": down, "unet.a.lora_B.weight": up}, folder / LORA_NAME)
    merge_lora(folder / "base.safetensors", folder / LORA_NAME, folder / "merged.safetensors")
    wanted = weight.copy()
    for i in range(3):
        for j in range(4):
            for k in range(rank):
                wanted[i, j] = np.float32(wanted[i, j] + np.float32(up[i, k] * down[k, j]))
    np.testing.assert_array_equal(load_file(folder / "merged.safetensors")["a.weight"], wanted)


def test_a_lora_for_another_model_is_refused(tmp_path: Path) -> None:
    base = make_base(tmp_path / "base")
    (tmp_path / "child").mkdir()
    other = save({f"unet.other.lora_{half}.weight": np.ones((2, 2), "float16") for half in "AB"})
    with pytest.raises(CheckpointError, match="'other', which the parent does not have"):
        derive_student(base, tmp_path / "child", other, "unet")
    with pytest.raises(CheckpointError, match="no LoRA weight"):
        derive_student(base, tmp_path / "child", save({"unet.mid.alpha": np.ones(1, "float16")}), "unet")


def test_who_holds_an_ancestor_needs_the_lora_files_alone(versions: tuple[Registry, list[Manifest]]) -> None:
    _, (base, first, second) = versions
    assert {entry.path for entry in to_fetch(first, base.blobs)} == {LORA_NAME}
    assert [entry.path for entry in to_fetch(second, base.blobs)].count(LORA_NAME) == 2
    assert {entry.sha256 for entry in to_fetch(second, ())} == set(second.blobs)


@pytest.mark.parametrize("kind", ["file", "http"])
def test_a_cache_makes_a_student_from_its_ancestor(
    versions: tuple[Registry, list[Manifest]], tmp_path: Path, kind: str
) -> None:
    registry, (base, _, second) = versions
    with registry_at(registry.root) as (http, _):
        url = http if kind == "http" else str(registry.root)
        cache = CheckpointCache(tmp_path / "cache")
        whole = pull(base.reference, url, cache)
        skipped_one = pull(second.reference, url, cache)
    assert whole.bytes_moved > base.size_bytes
    assert skipped_one.bytes_moved < 0.15 * base.size_bytes  # two LoRA files and the manifest
    for entry in second.files:
        assert (cache.path() / entry.path).read_bytes() == (registry.resolve("m:v2") / entry.path).read_bytes()
    assert cache.counters.bytes_fetched < 1.15 * base.size_bytes
    assert not list((cache.root / "flights").glob("*/*"))


def test_a_pull_into_a_registry_moves_the_lora_file(versions: tuple[Registry, list[Manifest]], tmp_path: Path) -> None:
    registry, (_, first, second) = versions
    mine = Registry(tmp_path / "mine")
    pull(first.reference, str(registry.root), mine)
    moved = pull(second.reference, str(registry.root), mine)
    assert moved.bytes_moved < 0.1 * second.size_bytes
    assert mine.resolve("m:v2").joinpath("unet").is_dir()


def test_a_difference_says_that_the_lora_file_is_all_that_is_fetched(
    versions: tuple[Registry, list[Manifest]],
) -> None:
    registry, (_, first, _) = versions
    found = diff(registry, "m:v0", "m:v1")
    assert found.fetched_bytes == first.derived[0].lora_size < 0.1 * found.new_bytes


def test_a_push_leaves_out_what_can_be_made_there(versions: tuple[Registry, list[Manifest]], tmp_path: Path) -> None:
    registry, (base, first, second) = versions
    for url in (str(tmp_path / "there"), "memory://derivation/registry"):
        sizes = [push(registry, version.reference, url).bytes_moved for version in (base, first, second)]
        assert max(sizes[1:]) < 0.1 * sizes[0], url
        cold = Registry(tmp_path / f"cold-{url[:3].strip('/')}")
        pull("m:v2", url, cold)
        assert cold.manifest("m:v2").digest == second.digest
        assert (cold.resolve("m:v2") / "unet").is_dir()


@pytest.mark.parametrize("kind", ["file", "s3", "http"])
def test_a_changed_lora_moves_less_than_three_percent(
    versions: tuple[Registry, list[Manifest]], tmp_path: Path, kind: str, request: pytest.FixtureRequest
) -> None:
    registry, (base, first, _) = versions
    mine = Registry(tmp_path / "mine")
    if kind == "http":
        with registry_at(registry.root) as (url, _):
            sizes = [pull(version.reference, url, mine).bytes_moved for version in (base, first)]
    else:
        url = request.getfixturevalue("s3") if kind == "s3" else str(tmp_path / "there")
        sizes = [push(registry, version.reference, url).bytes_moved for version in (base, first)]
        back = [pull(version.reference, url, mine).bytes_moved for version in (base, first)]
        assert back[1] < 0.03 * back[0]
    print(f"{kind}: {sizes[1]} of {sizes[0]} bytes, {sizes[1] / sizes[0]:.2%}")
    assert sizes[1] < 0.03 * sizes[0]
    assert mine.manifest("m:v1").digest == first.digest


def test_where_a_lora_file_is_gone_the_weights_are_fetched(
    versions: tuple[Registry, list[Manifest]], tmp_path: Path
) -> None:
    registry, (_, first, second) = versions
    cache = CheckpointCache(tmp_path / "cache")
    pull("m:v0", str(registry.root), cache)
    registry.blobs.path(first.derived[0].lora).unlink()
    pull("m:v2", str(registry.root), cache)
    assert cache.counters.bytes_fetched > 1.9 * second.size_bytes
    assert cache.digest == second.digest


def test_a_wrong_derivation_costs_bytes_and_nothing_else(
    versions: tuple[Registry, list[Manifest]], tmp_path: Path
) -> None:
    registry, (base, _, _) = versions
    folder = tmp_path / "liar"
    folder.mkdir()
    (folder / "model_index.json").write_text("{}")
    (derived,) = derive_student(registry.resolve("m:v0"), folder, lora(7), "unet")
    save_file({"w": np.zeros((64, 64), "float16")}, folder / "unet" / "diffusion_pytorch_model.safetensors")
    entry = registry.publish(folder, name="liar")
    unet = next(each for each in entry.files if each.path.startswith("unet"))
    from dataclasses import replace

    lied = registry.publish(folder, name="m", parents=["m:v2"], derived=[replace(derived, sha256=unet.sha256)])
    cache = CheckpointCache(tmp_path / "cache")
    pull(base.reference, str(registry.root), cache)
    pull(lied.reference, str(registry.root), cache)
    assert (cache.path() / unet.path).read_bytes() == (folder / unet.path).read_bytes()


def test_a_manifest_whose_content_comes_from_itself_is_refused(versions: tuple[Registry, list[Manifest]]) -> None:
    registry, (_, first, _) = versions
    facts = json.loads((registry.resolve("m:v1") / "manifest.json").read_text())
    facts["derived"].append(
        {**facts["derived"][0], "sha256": facts["derived"][0]["base"], "base": first.derived[0].sha256}
    )
    with pytest.raises(CheckpointError, match="derived from itself"):
        Manifest.from_json(json.dumps(facts))
