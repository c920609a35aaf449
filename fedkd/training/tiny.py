"""A Stable Diffusion pipeline of small real components with random weights, sized by the pretrain recipe."""

from __future__ import annotations

import json
import tempfile
from pathlib import Path

import torch
from diffusers import AutoencoderKL, DDIMScheduler, StableDiffusionPipeline, UNet2DConditionModel
from tokenizers.pre_tokenizers import ByteLevel
from transformers import CLIPTextConfig, CLIPTextModel, CLIPTokenizer

from fedkd.recipe import Recipe

TOKENS = 16


def words_of(recipe: Recipe) -> list[str]:
    """Every word that a caption of the recipe's grammar can have."""
    words = [word for word in recipe.prompts.template.split() if not word.startswith("{")]
    words += [value for values in recipe.prompts.slots.values() for value in values]
    return sorted(set(words), key=lambda word: (-len(word), word))


def word_tokenizer(words: list[str]) -> CLIPTokenizer:
    """A CLIP tokenizer in which each of `words` is one token and any other text still has some."""
    alphabet = sorted(ByteLevel.alphabet())
    merges: list[str] = []
    for word in words:
        pieces = [*word[:-1], word[-1] + "</w>"]
        while len(pieces) > 1:
            merge = f"{pieces[0]} {pieces[1]}"
            if merge not in merges:
                merges.append(merge)
            pieces = [pieces[0] + pieces[1], *pieces[2:]]
    tokens = [*alphabet, *(c + "</w>" for c in alphabet), *(m.replace(" ", "") for m in merges)]
    tokens += ["<|startoftext|>", "<|endoftext|>"]
    vocab = {token: i for i, token in enumerate(dict.fromkeys(tokens))}
    with tempfile.TemporaryDirectory() as folder:
        Path(folder, "vocab.json").write_text(json.dumps(vocab), encoding="utf-8")
        Path(folder, "merges.txt").write_text("#version: 0.2\n" + "\n".join(merges) + "\n", encoding="utf-8")
        tokenizer = CLIPTokenizer.from_pretrained(folder, model_max_length=TOKENS)
    for word in words:
        if len(tokenizer(word)["input_ids"]) != 3:
            raise ValueError(f"prompts.slots: the word '{word}' does not become one token; use another word")
    return tokenizer


def tiny_pipeline(recipe: Recipe) -> StableDiffusionPipeline:
    """The pipeline that `fedkd pretrain` starts from, seeded by `run.seed`."""
    size = recipe.pretrain
    tokenizer = word_tokenizer(words_of(recipe))
    torch.manual_seed(recipe.run.seed)
    text_encoder = CLIPTextModel(
        CLIPTextConfig(
            vocab_size=len(tokenizer),
            hidden_size=size.text_width,
            intermediate_size=2 * size.text_width,
            num_hidden_layers=size.text_layers,
            num_attention_heads=size.attention_heads,
            max_position_embeddings=TOKENS,
            projection_dim=size.text_width,
            bos_token_id=tokenizer.bos_token_id,
            eos_token_id=tokenizer.eos_token_id,
            pad_token_id=tokenizer.pad_token_id,
        )
    )
    # At CLIP's own 0.02 the colours are learned and the digit is not.
    torch.nn.init.normal_(text_encoder.get_input_embeddings().weight, std=size.embedding_std)
    levels = len(size.vae_channels)
    vae = AutoencoderKL(
        block_out_channels=tuple(size.vae_channels),
        down_block_types=("DownEncoderBlock2D",) * levels,
        up_block_types=("UpDecoderBlock2D",) * levels,
        latent_channels=size.latent_channels,
        norm_num_groups=size.norm_groups,
        sample_size=recipe.model.resolution,
        scaling_factor=1.0,
    )
    depth = len(size.unet_channels)
    unet = UNet2DConditionModel(
        sample_size=recipe.model.resolution // 2 ** (levels - 1),
        in_channels=size.latent_channels,
        out_channels=size.latent_channels,
        block_out_channels=tuple(size.unet_channels),
        down_block_types=("CrossAttnDownBlock2D",) * depth,
        up_block_types=("CrossAttnUpBlock2D",) * depth,
        layers_per_block=size.unet_layers,
        attention_head_dim=size.attention_heads,
        cross_attention_dim=size.text_width,
        norm_num_groups=size.norm_groups,
    )
    scheduler = DDIMScheduler(
        beta_start=0.00085,
        beta_end=0.012,
        beta_schedule="scaled_linear",
        prediction_type="v_prediction",
        rescale_betas_zero_snr=True,
        timestep_spacing="trailing",
        clip_sample=False,
        set_alpha_to_one=False,
        steps_offset=1,
    )
    return StableDiffusionPipeline(
        vae, text_encoder, tokenizer, unet, scheduler, None, None, requires_safety_checker=False
    )
