"""Small random-weight pipelines of the families that tests/models/families.py lacks."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch

from tests.conftest import build_pipeline, build_tokenizer
from tests.models.families import sd3, sdxl, text_config, vae


def sd1(folder: Path) -> Any:
    """SD 1.x: noise prediction, PNDM without its Runge-Kutta steps."""
    from diffusers import PNDMScheduler

    pipe = build_pipeline(folder)
    pipe.scheduler = PNDMScheduler(beta_schedule="scaled_linear", skip_prk_steps=True, steps_offset=1)
    return pipe


def sd2(folder: Path) -> Any:
    """SD 2.x: v-prediction, heads of a fixed width by depth, linear projections, another text encoder."""
    from diffusers import DDIMScheduler, StableDiffusionPipeline, UNet2DConditionModel
    from transformers import CLIPTextModel

    torch.manual_seed(0)
    tokenizer = build_tokenizer(folder)
    unet = UNet2DConditionModel(
        sample_size=8,
        block_out_channels=(16, 32),
        layers_per_block=1,
        cross_attention_dim=32,
        attention_head_dim=[2, 4],
        use_linear_projection=True,
        norm_num_groups=4,
        down_block_types=("CrossAttnDownBlock2D", "DownBlock2D"),
        up_block_types=("UpBlock2D", "CrossAttnUpBlock2D"),
    )
    return StableDiffusionPipeline(
        vae=vae(),
        text_encoder=CLIPTextModel(text_config(tokenizer)),
        tokenizer=tokenizer,
        unet=unet,
        scheduler=DDIMScheduler(
            beta_schedule="scaled_linear", prediction_type="v_prediction", clip_sample=False, steps_offset=1
        ),
        safety_checker=None,
        feature_extractor=None,
        requires_safety_checker=False,
    )


def sd3_with_t5(folder: Path) -> Any:
    """SD3 with its third text encoder."""
    from transformers import T5Config, T5EncoderModel, T5Tokenizer

    pipe = sd3(folder)
    letters = [(letter, -3.0) for letter in "abcdefghijklmnopqrstuvwxyz"]
    tokenizer = T5Tokenizer(vocab=[("<pad>", 0.0), ("</s>", 0.0), ("<unk>", 0.0), ("▁", -2.0), *letters], extra_ids=0)
    encoder = T5EncoderModel(
        T5Config(vocab_size=len(tokenizer), d_model=64, d_kv=8, d_ff=64, num_layers=1, num_heads=4)
    )
    parts = pipe.components | {"text_encoder_3": encoder, "tokenizer_3": tokenizer}
    return type(pipe)(**parts)


def sd3_of_few_steps(folder: Path) -> Any:
    """SD3 with the scheduler of a distilled student: DPM-Solver++ told to do flow matching."""
    from fedkd.distillation.samplers import few_step_ddim

    pipe = sd3(folder)
    pipe.scheduler = few_step_ddim(pipe.scheduler)
    return pipe


def controlnet(folder: Path) -> Any:
    """SD 1.5 with a ControlNet whose output layers are not the zeros that training starts from."""
    from diffusers import ControlNetModel, StableDiffusionControlNetPipeline

    pipe = build_pipeline(folder)
    torch.manual_seed(1)
    steering = ControlNetModel.from_unet(pipe.unet, conditioning_embedding_out_channels=(4, 8, 8))
    for module in (*steering.controlnet_down_blocks, steering.controlnet_mid_block):
        torch.nn.init.normal_(module.weight, std=0.2)
    torch.nn.init.normal_(steering.controlnet_cond_embedding.conv_out.weight, std=0.2)
    return StableDiffusionControlNetPipeline(**pipe.components, controlnet=steering, requires_safety_checker=False)


FAMILIES = {
    "sd1": sd1,
    "sd2": sd2,
    "sdxl": sdxl,
    "sd3_without_t5": sd3,
    "sd3_with_t5": sd3_with_t5,
    "sd3_of_few_steps": sd3_of_few_steps,
    "controlnet": controlnet,
}
