"""Costs of whole families, counted from their configurations, against figures derived independently."""

import json

import pytest
import torch
from diffusers import AutoencoderKL, UNet2DConditionModel
from transformers import CLIPTextConfig, CLIPTextModel, CLIPTextModelWithProjection

from fedkd.models.architecture import configurations, counted_cost, without_weights
from fedkd.models.flops import decoder_flop, denoiser_flop, encoder_flop, model_cost, text_encoder_flop
from fedkd.models.source import ModelError
from tests.models.test_flops import CLIP_L, UNET_SD_1_5, VAE_SD_1_5

UNET_SD_2_1 = UNET_SD_1_5 | dict(
    cross_attention_dim=1024, attention_head_dim=[5, 10, 20, 20], use_linear_projection=True
)
UNET_SDXL = dict(
    sample_size=128,
    down_block_types=("DownBlock2D", "CrossAttnDownBlock2D", "CrossAttnDownBlock2D"),
    up_block_types=("CrossAttnUpBlock2D", "CrossAttnUpBlock2D", "UpBlock2D"),
    block_out_channels=(320, 640, 1280),
    transformer_layers_per_block=[1, 2, 10],
    attention_head_dim=[5, 10, 20],
    cross_attention_dim=2048,
    addition_embed_type="text_time",
    addition_time_embed_dim=256,
    projection_class_embeddings_input_dim=2816,
    use_linear_projection=True,
)
OPENCLIP_H = dict(
    hidden_size=1024, intermediate_size=4096, num_hidden_layers=23, num_attention_heads=16, projection_dim=512
)
OPENCLIP_G = dict(
    hidden_size=1280, intermediate_size=5120, num_hidden_layers=32, num_attention_heads=20, projection_dim=1280
)


ACCEPTED = {
    "sd-1.5": (0.80327, 859_520_964),
    "sd-2.1": (0.80426, 865_910_724),
    "sd-2.1-768": (2.14911, 865_910_724),
    "sdxl": (6.76124, 2_567_463_684),
}
"""TFLOP of a step and parameters of the UNet, derived once, independently of this project."""


def unet(config):
    with torch.device("meta"):
        return UNet2DConditionModel(**config)


def test_flops_of_a_step_follow_the_resolution():
    """SDXL at 64² latents; the other acceptance values are those of the planner's known models, below."""
    model = unet(UNET_SDXL)
    with torch.device("meta"):
        conditions = {"encoder_hidden_states": torch.empty(1, 77, 2048)}
        conditions |= {"text_embeds": torch.empty(1, 1280), "time_ids": torch.empty(1, 6)}
    assert sum(p.numel() for p in model.parameters()) == 2_567_463_684
    assert denoiser_flop(model, (4, 64, 64), conditions) / 1e12 == pytest.approx(1.58878, rel=0.005)


@pytest.mark.parametrize(
    ("kind", "config", "tflop", "millions"),
    [
        (CLIPTextModel, CLIP_L, 0.01330, 123.06),
        (CLIPTextModel, CLIP_L | OPENCLIP_H, 0.04513, 340.39),
        (CLIPTextModelWithProjection, CLIP_L | OPENCLIP_G, 0.09786, 694.66),
    ],
)
def test_text_encoders_cost_what_they_should(kind, config, tflop, millions):
    with torch.device("meta"):
        model = kind(CLIPTextConfig(**config))
    assert sum(p.numel() for p in model.parameters()) / 1e6 == pytest.approx(millions, abs=0.01)
    assert text_encoder_flop(model, 77) / 1e12 == pytest.approx(tflop, rel=0.005)


def test_the_vae_costs_what_it_should():
    with torch.device("meta"):
        vae = AutoencoderKL(**VAE_SD_1_5)
    assert sum(p.numel() for p in vae.parameters()) == 83_653_863
    assert decoder_flop(vae, (4, 64, 64)) / 1e12 == pytest.approx(2.51452, rel=0.005)
    assert encoder_flop(vae, 512) / 1e12 == pytest.approx(1.11666, rel=0.005)


def test_a_folder_s_configurations_say_what_the_loaded_model_says(tiny_folder, tmp_path, monkeypatch):
    from fedkd.models.pipeline import load_pipeline

    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    pipe = load_pipeline(str(tiny_folder), device="cpu", dtype="float32", scheduler="DDIMScheduler")
    resolution = pipe.unet.config.sample_size * pipe.vae_scale_factor
    assert counted_cost(str(tiny_folder), value_bytes=4) == model_cost(pipe, resolution)


def test_an_architecture_is_counted_once(tiny_folder, tmp_path, monkeypatch):
    from fedkd.models import architecture

    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    first = counted_cost(str(tiny_folder))
    monkeypatch.setattr(architecture, "without_weights", lambda configs: pytest.fail("counted again"))
    assert counted_cost(str(tiny_folder)) == first


def test_a_damaged_memory_is_counted_anew(tiny_folder, tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    first = counted_cost(str(tiny_folder))
    for path in (tmp_path / "fedkd" / "costs").iterdir():
        path.write_text("{")
    assert counted_cost(str(tiny_folder)) == first


def test_what_cannot_be_counted_is_an_error_that_says_so(tiny_folder, tmp_path):
    (tmp_path / "model_index.json").write_text(json.dumps({"unet": ["diffusers", "UNet2DConditionModel"]}))
    with pytest.raises(ModelError, match=r"config\.json"):
        configurations(str(tmp_path))
    found = configurations(str(tiny_folder))
    with pytest.raises(ModelError, match="cannot be counted"):
        without_weights(found | {"unet": ("NoSuchModel", {})})


def planned(unet_config, encoders, side):
    """`model_cost` of a whole family in fp16, at 8 times `side` pixels."""
    import types

    with torch.device("meta"):
        vae = AutoencoderKL(**VAE_SD_1_5)
        texts = [kind(CLIPTextConfig(**(CLIP_L | config))) for kind, config in encoders]
    parts = {"unet": unet(unet_config), "vae": vae, "tokenizer": types.SimpleNamespace(model_max_length=77)}
    parts |= dict(zip(("text_encoder", "text_encoder_2"), texts, strict=False))
    return model_cost(types.SimpleNamespace(components=parts, vae_scale_factor=8, **parts), 8 * side, value_bytes=2)


@pytest.mark.parametrize(
    ("name", "unet_config", "encoders", "side"),
    [
        ("sd-1.5", UNET_SD_1_5, [(CLIPTextModel, {})], 64),
        ("sd-2.1", UNET_SD_2_1, [(CLIPTextModel, OPENCLIP_H)], 64),
        ("sd-2.1-768", UNET_SD_2_1, [(CLIPTextModel, OPENCLIP_H)], 96),
        ("sdxl", UNET_SDXL, [(CLIPTextModel, {}), (CLIPTextModelWithProjection, OPENCLIP_G)], 128),
    ],
)
def test_the_planner_s_known_models_are_what_is_counted(name, unet_config, encoders, side):
    from dataclasses import asdict

    from fedkd.planning.known_models import KNOWN

    found = planned(unet_config, encoders, side)
    tflop, parameters = ACCEPTED[name]
    assert KNOWN[name].unet_flop == tflop * 1e12 and found["unet_bytes"] == 2 * parameters
    for field, value in asdict(KNOWN[name]).items():
        exact = field.endswith("_bytes")
        assert found[field] == (value if exact else pytest.approx(value, rel=2e-4)), field
