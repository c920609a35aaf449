"""Every family of Stable Diffusion, split anywhere, equals its own diffusers pipeline bit for bit."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image

from fedkd.inference.denoiser import decode, denoise, encode, hand_off, start, take_up
from fedkd.inference.handoff import HandOff
from fedkd.models.conditioning import encode_control, predict
from fedkd.models.control import ControlledUNet
from fedkd.models.pipeline import denoiser_of
from tests.inference.tiny_families import FAMILIES, controlnet
from tests.models.families import sd3

T = 4
CONTROL = Image.linear_gradient("L").resize((32, 32)).convert("RGB")
SCALE = 0.7


@pytest.fixture(scope="module")
def families(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """One pipeline of each family."""
    torch.manual_seed(0)
    made = {name: build(tmp_path_factory.mktemp("tokenizer")) for name, build in FAMILIES.items()}
    for pipe in made.values():
        settle(pipe)
    return made


def settle(pipe: Any) -> Any:
    """`pipe` without its progress bar and without dropout."""
    pipe.set_progress_bar_config(disable=True)
    for part in pipe.components.values():
        if isinstance(part, torch.nn.Module):
            part.eval()
    return pipe


def network(pipe: Any) -> Any:
    return ControlledUNet.of(pipe) if hasattr(pipe, "controlnet") else denoiser_of(pipe)


def unsplit(pipe: Any, guidance: float, output_type: str = "latent") -> Any:
    extra = (
        {"image": CONTROL, "controlnet_conditioning_scale": SCALE}
        if hasattr(pipe, "controlnet")
        else {"height": 32, "width": 32}
    )
    return pipe(
        "a red seven",
        num_inference_steps=T,
        guidance_scale=guidance,
        generator=torch.Generator("cpu").manual_seed(3),
        output_type=output_type,
        **extra,
    ).images


def begin(pipe: Any, guidance: float) -> Any:
    conditions = encode(pipe, "a red seven", guidance)
    if hasattr(pipe, "controlnet"):
        conditions |= encode_control(pipe, CONTROL, rows=2 if guidance > 1 else 1, scale=SCALE)
    return start(pipe, conditions, seed=3, num_inference_steps=T, guidance_scale=guidance)


def crossed(job: Any) -> Any:
    return take_up(HandOff.from_bytes(hand_off(job, "m", with_conditions=True).to_bytes(), model="m"))


@pytest.mark.parametrize("name", FAMILIES)
@pytest.mark.parametrize("guidance", [1.0, 3.0])
def test_a_split_at_any_step_gives_the_pipelines_latents(families: dict[str, Any], name: str, guidance: float) -> None:
    pipe = families[name]
    expected = unsplit(pipe, guidance)
    assert torch.isfinite(expected).all()
    for k in (0, 1, T // 2, T - 1, T):
        job = denoise(network(pipe), begin(pipe, guidance), k)
        assert torch.equal(denoise(network(pipe), crossed(job)).latents, expected), f"{name} split at {k}"


@pytest.mark.parametrize("name", FAMILIES)
def test_the_picture_of_a_split_is_the_pipelines(families: dict[str, Any], name: str) -> None:
    pipe = families[name]
    job = denoise(network(pipe), crossed(denoise(network(pipe), begin(pipe, 3.0), 2)))
    assert decode(pipe.vae, job.latents).tobytes() == unsplit(pipe, 3.0, "pil")[0].tobytes()


def test_sd3_sends_no_rows_of_the_t5_that_it_lacks(families: dict[str, Any]) -> None:
    sizes = {
        name: len(hand_off(begin(families[name], 3.0), "m", with_conditions=True).to_bytes())
        for name in ("sd3_without_t5", "sd3_with_t5")
    }
    assert families["sd3_without_t5"].text_encoder_3 is None
    assert sizes["sd3_with_t5"] - sizes["sd3_without_t5"] > 2 * 256 * 64 * 4 * 0.9
    job = begin(families["sd3_without_t5"], 3.0)
    assert torch.equal(crossed(job).conditions["encoder_hidden_states"], job.conditions["encoder_hidden_states"])


def test_a_control_image_crosses_once_for_both_guidance_rows(families: dict[str, Any]) -> None:
    job = begin(families["controlnet"], 3.0)
    found = crossed(job).conditions
    assert torch.equal(found["control_image"], job.conditions["control_image"])
    assert found["control_scale"].tolist() == torch.full((2, 1, 1, 1), SCALE).tolist()
    plain = replace(
        hand_off(job, "m", with_conditions=True), conditions=encode(families["controlnet"], "a red seven", 3.0)
    )
    alone = 3 * 32 * 32 * 4
    sent = len(hand_off(job, "m", with_conditions=True).to_bytes()) - len(plain.to_bytes())
    assert alone <= sent < 1.2 * alone


def test_the_control_image_steers_and_its_scale_weighs_each_row(families: dict[str, Any]) -> None:
    pipe = families["controlnet"]
    latents, t = torch.randn(2, 4, 8, 8, generator=torch.Generator().manual_seed(0)), torch.tensor(500)
    told = encode(pipe, "a red seven", 3.0) | encode_control(pipe, CONTROL, rows=2)
    told["control_scale"][0] = 0.0
    with_control, without = (
        predict(network(pipe), latents, t, told),
        predict(pipe.unet, latents, t, encode(pipe, "a red seven", 3.0)),
    )
    assert torch.equal(with_control[0], without[0]) and not torch.allclose(with_control[1], without[1])


def test_half_precision_controlnet_is_the_pipelines_too(tmp_path: Path) -> None:
    pipe = settle(controlnet(tmp_path).to(torch.bfloat16))
    job = crossed(denoise(network(pipe), begin(pipe, 3.0), 2))
    assert torch.equal(denoise(network(pipe), job).latents, unsplit(pipe, 3.0))


def test_a_control_image_for_a_denoiser_without_controlnet_is_refused(families: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match="no ControlNet"):
        denoise(families["controlnet"].unet, begin(families["controlnet"], 3.0))


def test_a_controlnet_that_pools_its_residuals_is_refused(tmp_path: Path) -> None:
    pipe = controlnet(tmp_path)
    pipe.controlnet.register_to_config(global_pool_conditions=True)
    with pytest.raises(ValueError, match="global_pool_conditions"):
        encode_control(pipe, CONTROL, rows=1)


def test_a_resolution_dependent_shift_crosses(tmp_path: Path) -> None:
    pipe = settle(sd3(tmp_path))
    pipe.scheduler = type(pipe.scheduler)(use_dynamic_shifting=True)
    job = denoise(network(pipe), begin(pipe, 3.0), 2)
    assert "mu" in job.arguments
    assert torch.equal(denoise(network(pipe), crossed(job)).latents, unsplit(pipe, 3.0))
