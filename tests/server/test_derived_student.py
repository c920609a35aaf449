"""A published LoRA student: its parent's weights plus its LoRA file, and nothing else has to move."""

from __future__ import annotations

from pathlib import Path

import torch
from safetensors.torch import load_file

from fedkd.checkpoints.cache import CheckpointCache
from fedkd.checkpoints.lora_merge import LORA_NAME
from fedkd.checkpoints.registry import Registry
from fedkd.checkpoints.transfer import pull
from fedkd.models.adapter import merge_adapter
from fedkd.models.pipeline import denoiser_of, load_pipeline
from tests.server.conftest import Done

UNET = Path("unet") / "diffusion_pytorch_model.safetensors"


def test_a_student_is_its_parent_plus_its_lora_file(undisturbed: Done, tmp_path: Path) -> None:
    made = undisturbed
    registry = Registry(made.federation.registry.root)
    base, first, last = (registry.manifest(f"tiny:{version}") for version in ("v0", "v1", "v2"))
    assert len(first.derived) == 1 and len(last.derived) == 2
    assert first.edges == ("edge-0", "edge-1")

    by_peft = load_pipeline(str(registry.resolve("tiny:v0")))
    merge_adapter(by_peft, (made.run / "state" / "round-001" / "student.safetensors").read_bytes())
    published = load_file(registry.resolve("tiny:v1") / UNET)
    for name, weight in denoiser_of(by_peft).state_dict().items():
        torch.testing.assert_close(published[name].float(), weight.float(), rtol=2e-3, atol=2e-5)

    cache = CheckpointCache(tmp_path / "edge")
    pull("tiny:v0", str(registry.root), cache)
    before = cache.counters.bytes_fetched
    pull("tiny:v2", str(registry.root), cache)
    lora = sum(each.lora_size for each in last.derived)
    changed = {entry.sha256 for entry in last.files} - set(base.blobs) - {each.sha256 for each in last.derived}
    assert cache.counters.bytes_fetched - before <= lora + sum(last.blobs[sha256] for sha256 in changed)
    assert (cache.path() / UNET).read_bytes() == (registry.resolve("tiny:v2") / UNET).read_bytes()

    plain = load_pipeline(str(registry.resolve("tiny:v0")))
    plain.load_lora_weights(str(registry.resolve("tiny:v1")), weight_name=LORA_NAME)
    plain.fuse_lora()
    fused = dict(plain.unet.state_dict())
    checked = [name for name in published if name in fused]
    assert checked
    for name in checked:
        torch.testing.assert_close(published[name].float(), fused[name].float(), rtol=2e-3, atol=2e-5)
