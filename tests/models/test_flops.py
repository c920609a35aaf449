"""FLOPs and bytes against figures of Stable Diffusion 1.5 that were derived independently."""

import types

import pytest
import torch
from diffusers import AutoencoderKL, UNet2DConditionModel
from transformers import CLIPTextConfig, CLIPTextModel

from fedkd.models.flops import count_flop, model_cost

UNET_SD_1_5 = dict(
    sample_size=64,
    in_channels=4,
    out_channels=4,
    down_block_types=("CrossAttnDownBlock2D",) * 3 + ("DownBlock2D",),
    up_block_types=("UpBlock2D",) + ("CrossAttnUpBlock2D",) * 3,
    block_out_channels=(320, 640, 1280, 1280),
    layers_per_block=2,
    cross_attention_dim=768,
    attention_head_dim=8,
)
VAE_SD_1_5 = dict(
    down_block_types=("DownEncoderBlock2D",) * 4,
    up_block_types=("UpDecoderBlock2D",) * 4,
    block_out_channels=(128, 256, 512, 512),
    layers_per_block=2,
    latent_channels=4,
    sample_size=512,
)
CLIP_L = dict(
    vocab_size=49408,
    hidden_size=768,
    intermediate_size=3072,
    num_hidden_layers=12,
    num_attention_heads=12,
    max_position_embeddings=77,
    projection_dim=768,
)


@pytest.fixture(scope="module")
def sd_1_5():
    """What `model_cost` reads of a pipeline, with the real components on the meta device."""
    with torch.device("meta"):
        parts = {
            "unet": UNet2DConditionModel(**UNET_SD_1_5),
            "vae": AutoencoderKL(**VAE_SD_1_5),
            "text_encoder": CLIPTextModel(CLIPTextConfig(**CLIP_L)),
            "tokenizer": types.SimpleNamespace(model_max_length=77),
        }
    return types.SimpleNamespace(components=parts, vae_scale_factor=8, **parts)


@pytest.fixture(scope="module")
def measured(sd_1_5):
    return model_cost(sd_1_5, 512, value_bytes=2)


def test_a_product_of_matrices_counts_two_flop_a_multiply_accumulate():
    a, b = torch.empty(3, 5, device="meta"), torch.empty(5, 7, device="meta")
    assert count_flop(lambda: a @ b) == 2 * 3 * 5 * 7


@pytest.mark.parametrize(
    ("part", "tflop"), [("unet_flop", 0.80327), ("text_encoder_flop", 0.01330), ("vae_flop", 2.51452)]
)
def test_flops_of_sd_1_5_are_within_half_a_percent(measured, part, tflop):
    assert measured[part] / 1e12 == pytest.approx(tflop, rel=0.005)


def test_bytes_of_sd_1_5_in_fp16_are_exact(sd_1_5, measured):
    assert sum(p.numel() for p in sd_1_5.unet.parameters()) == 859_520_964
    assert measured["unet_bytes"] == 1_719_041_928
    assert measured["latents_bytes"] == 32_768
    assert measured["embedding_bytes"] == 118_272
    assert measured["image_bytes"] == 786_432
    assert measured["total_bytes"] == 2_132_470_614


def test_the_planner_s_own_constants_are_these_figures(measured):
    from dataclasses import asdict

    from fedkd.planning.system import SD_1_5

    for name, value in asdict(SD_1_5).items():
        assert measured[name] == pytest.approx(value, rel=0.005), name


def test_bytes_follow_the_dtype_of_the_model(sd_1_5, measured):
    assert model_cost(sd_1_5, 512)["unet_bytes"] == 2 * measured["unet_bytes"]
