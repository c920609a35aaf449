"""Teachers are read from a recipe in every form, and refused with a reason before anything is trained."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load, save

from fedkd.distillation.jobs.faculty import TeacherError, assemble
from fedkd.distillation.jobs.foreign_adapter import own_form
from fedkd.distillation.teachers import BASE
from fedkd.models.adapter import AdapterError, adapter_config, diffusers_lora_bytes
from tests.conftest import build_pipeline
from tests.distillation.classroom import random_adapter
from tests.distillation.small_job import adapter_at, job


def weights_of(data: bytes) -> dict[str, torch.Tensor]:
    """What each module gains: scale B A."""
    lora, tensors = adapter_config(data), load(data)
    paths = {key.partition(".lora_")[0] for key in tensors}
    scale = lora["lora_alpha"] / lora["r"]
    return {p: scale * tensors[f"{p}.lora_B.weight"] @ tensors[f"{p}.lora_A.weight"] for p in paths}


def saved(folder: Path, seed: int = 0, change: Any = None) -> Path:
    """Another tiny model, changed by `change(pipe)`, as a folder."""
    pipe = build_pipeline(folder / "tokenizer")
    if change:
        change(pipe)
    pipe.save_pretrained(str(folder / "model"), safe_serialization=True)
    return folder / "model"


def test_the_base_an_adapter_and_a_whole_model_teach_together(
    tiny_pipeline: Any, tiny_folder: Path, tmp_path: Path
) -> None:
    def finetuned(pipe: Any) -> None:
        pipe.unet.conv_out.bias.data += 0.1

    whole = saved(tmp_path, change=finetuned)
    adapter = adapter_at(tmp_path / "edge.v1.safetensors", tiny_pipeline)
    teachers = [
        {},
        {"adapter": str(adapter), "concepts": ["seven"], "weight": 0.25},
        {"name": "whole", "checkpoint": str(whole)},
    ]
    before = {key: tensor.clone() for key, tensor in tiny_pipeline.unet.state_dict().items()}
    faculty = assemble(job(tmp_path, tiny_folder, teachers), tiny_pipeline)
    assert faculty.names == [BASE, "edge-v1", "whole"]
    assert set(faculty.adapters) == {"edge-v1"} and set(faculty.modules) == {"whole"}
    assert faculty.concepts == {BASE: ["zero", "one"], "edge-v1": ["seven"], "whole": ["zero", "one", "seven"]}
    assert faculty.fixed["edge-v1"] == 0.25
    after = tiny_pipeline.unet.state_dict()
    assert after.keys() == before.keys() and all(torch.equal(after[key], before[key]) for key in before)


def test_a_checkpoint_that_is_the_base_costs_no_second_network(
    tiny_pipeline: Any, tiny_folder: Path, tmp_path: Path
) -> None:
    faculty = assemble(job(tmp_path, tiny_folder, [{"checkpoint": str(tiny_folder)}]), tiny_pipeline)
    assert faculty.names == [BASE] and not faculty.modules


def test_a_teacher_draws_with_its_own_weights_and_leaves_none_behind(
    tiny_pipeline: Any, tiny_folder: Path, tmp_path: Path
) -> None:
    adapter = adapter_at(tmp_path / "edge.safetensors", tiny_pipeline)
    faculty = assemble(job(tmp_path, tiny_folder, [{"adapter": str(adapter)}]), tiny_pipeline)
    told = torch.zeros(1, 4, 8, 8), torch.tensor([10]), torch.ones(1, 4, 32)
    with torch.no_grad():
        bare = tiny_pipeline.unet(*told).sample
        with faculty.drawing(tiny_pipeline, "edge") as pipe:
            assert not torch.equal(pipe.unet(*told).sample, bare)
        assert torch.equal(tiny_pipeline.unet(*told).sample, bare)


def test_a_diffusers_file_or_its_folder_means_the_same_adapter(
    tiny_pipeline: Any, tiny_folder: Path, tmp_path: Path
) -> None:
    data = random_adapter(tiny_pipeline.unet, 3)
    folder = tmp_path / "edge"
    folder.mkdir()
    (folder / "pytorch_lora_weights.safetensors").write_bytes(diffusers_lora_bytes(data))
    for given in (folder, folder / "pytorch_lora_weights.safetensors"):
        faculty = assemble(job(tmp_path, tiny_folder, [{"adapter": str(given)}]), tiny_pipeline)
        found = weights_of(faculty.adapters["edge"])
        for path, expected in weights_of(data).items():
            torch.testing.assert_close(found[path], expected)


@pytest.mark.parametrize("stored", ["alpha", "metadata"])
def test_older_names_alphas_and_mixed_ranks_are_read(stored: str) -> None:
    torch.manual_seed(0)
    a, b = torch.randn(2, 8), torch.randn(8, 2)
    narrow = torch.randn(1, 8), torch.randn(8, 1)
    tensors = {
        "unet.mid.to_q.lora.down.weight": a,
        "unet.mid.to_q.lora.up.weight": b,
        "unet.mid.to_k.lora_A.weight": narrow[0],
        "unet.mid.to_k.lora_B.weight": narrow[1],
    }
    metadata = {}
    if stored == "alpha":
        tensors["unet.mid.to_q.alpha"] = torch.tensor(4.0)
    else:
        told = {"unet.r": 2, "unet.lora_alpha": 1, "unet.alpha_pattern": {"mid.to_q": 4}}
        metadata["lora_adapter_metadata"] = json.dumps(told)
    found = weights_of(own_form(save(tensors, metadata={"format": "pt", **metadata})))
    torch.testing.assert_close(found["mid.to_q"], 2 * b @ a)
    torch.testing.assert_close(found["mid.to_k"], narrow[1] @ narrow[0])


@pytest.mark.parametrize(
    ("tensors", "named"),
    [
        ({"text_encoder.x.lora_A.weight": torch.zeros(1, 1)}, "text-encoder weights"),
        ({"lora_unet_down.weight": torch.zeros(1, 1)}, "lora_unet_down.weight"),
        ({"unet.x.lora_A.weight": torch.zeros(1, 1)}, "no matching lora_A and lora_B for 'x'"),
        ({"unet.x.lora_magnitude_vector": torch.zeros(1)}, "no plain LoRA weight"),
    ],
)
def test_a_file_of_another_form_is_refused(tensors: dict[str, torch.Tensor], named: str) -> None:
    with pytest.raises(AdapterError, match=named):
        own_form(save(tensors))


@pytest.mark.parametrize(
    ("fault", "named"),
    [
        ("missing", r"teachers\[1\].adapter=.*does not exist"),
        ("unreadable", r"teachers\[1\].adapter=.*cannot be read"),
        ("nan", r"teachers\[1\].adapter=.*not finite"),
        ("other base", r"teachers\[1\].adapter=.*does not fit this model.*made for model.path="),
        ("empty folder", r"teachers\[1\].adapter=.*folder with 0 safetensors files"),
        ("same name", r"teachers\[1\].name=edge is an earlier teacher's"),
        ("reserved", r"teachers\[1\].name=student is reserved"),
        ("base by name", r"teachers\[1\].name=base is reserved"),
        ("bad name", r"teachers\[1\].name='a.b' is not allowed"),
    ],
)
def test_an_adapter_that_cannot_teach_is_refused_by_field_and_reason(
    tiny_pipeline: Any, tiny_folder: Path, tmp_path: Path, fault: str, named: str
) -> None:
    good = adapter_at(tmp_path / "edge.safetensors", tiny_pipeline)
    bad, name = tmp_path / "bad.safetensors", ""
    match fault:
        case "unreadable":
            bad.write_bytes(b"not safetensors at all, whatever its name says")
        case "nan":
            tensors, header = load(good.read_bytes()), {"lora": json.dumps(adapter_config(good.read_bytes()))}
            next(iter(tensors.values()))[0, 0] = float("nan")
            bad.write_bytes(save(tensors, metadata=header))
        case "other base":
            tensors, header = load(good.read_bytes()), {"lora": json.dumps(adapter_config(good.read_bytes()))}
            bad.write_bytes(save({key: t.repeat_interleave(2, 1) for key, t in tensors.items()}, metadata=header))
        case "empty folder":
            bad.mkdir()
        case "same name":
            bad = good
        case "reserved" | "base by name" | "bad name":
            bad, name = good, {"reserved": "student", "base by name": "base", "bad name": "a.b"}[fault]
    teachers = [{"adapter": str(good)}, {"adapter": str(bad), "name": name}]
    with pytest.raises(TeacherError, match=named):
        assemble(job(tmp_path, tiny_folder, teachers), tiny_pipeline)
    assert not getattr(tiny_pipeline.unet, "peft_config", None)


def other_architecture(pipe: Any) -> None:
    from diffusers import UNet2DConditionModel

    pipe.unet = UNet2DConditionModel.from_config({**pipe.unet.config, "block_out_channels": (16, 48)})


def other_latents(pipe: Any) -> None:
    pipe.vae.register_to_config(scaling_factor=0.5)


def other_vae(pipe: Any) -> None:
    pipe.vae.decoder.conv_in.weight.data += 1.0


def other_words(pipe: Any) -> None:
    next(pipe.text_encoder.parameters()).data += 1.0


def other_target(pipe: Any) -> None:
    pipe.scheduler.register_to_config(prediction_type="epsilon")


def not_finite(pipe: Any) -> None:
    pipe.unet.conv_out.bias.data[:] = float("nan")


@pytest.mark.parametrize(
    ("change", "named"),
    [
        (other_architecture, "another architecture"),
        (other_latents, r"another latent space \(vae.scaling_factor=0.5"),
        (other_vae, r"another latent space \(other VAE weights\)"),
        (other_words, "another text_encoder"),
        (other_target, "prediction_type=epsilon and not v_prediction"),
        (not_finite, "not finite"),
    ],
)
def test_a_whole_model_that_speaks_another_language_is_refused(
    tiny_pipeline: Any, tiny_folder: Path, tmp_path: Path, change: Any, named: str
) -> None:
    recipe = job(tmp_path, tiny_folder, [{"checkpoint": str(saved(tmp_path, change=change))}])
    with pytest.raises(TeacherError, match=rf"teachers\[0\].checkpoint=.*{named}"):
        assemble(recipe, tiny_pipeline)


def test_a_checkpoint_that_nobody_knows_is_refused(tiny_pipeline: Any, tiny_folder: Path, tmp_path: Path) -> None:
    with pytest.raises(TeacherError, match=r"teachers\[0\].checkpoint=nowhere"):
        assemble(job(tmp_path, tiny_folder, [{"checkpoint": "nowhere"}]), tiny_pipeline)
