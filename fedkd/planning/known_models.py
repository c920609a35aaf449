"""Costs of the Stable Diffusion models that the papers name, counted once, so that planning needs no model at all."""

from __future__ import annotations

from fedkd.planning.system import SD_1_5, ModelCost


def _cost(
    unet_tflop: float,
    text_tflop: float,
    vae_tflop: float,
    parameters: tuple[int, int, int],
    latent_side: int,
    embedding_values: int,
) -> ModelCost:
    """A model in fp16; `parameters` of UNet, text encoders and VAE; `latent_side` is an eighth of the picture's."""
    unet, text, vae = (2 * count for count in parameters)
    return ModelCost(
        unet_flop=unet_tflop * 1e12,
        text_encoder_flop=text_tflop * 1e12,
        vae_flop=vae_tflop * 1e12,
        unet_bytes=unet,
        latents_bytes=2 * 4 * latent_side**2,
        embedding_bytes=2 * embedding_values,
        image_bytes=3 * (8 * latent_side) ** 2,
        total_bytes=unet + text + vae,
        text_encoder_bytes=text,
        vae_bytes=vae,
    )


VAE_PARAMETERS = 83_653_863
SD_2_1 = _cost(0.80426, 0.04513, 2.51452, (865_910_724, 340_387_840, VAE_PARAMETERS), 64, 77 * 1024)
SD_2_1_768 = _cost(2.14911, 0.04513, 5.75430, (865_910_724, 340_387_840, VAE_PARAMETERS), 96, 77 * 1024)
SDXL = _cost(6.76124, 0.11116, 10.47039, (2_567_463_684, 817_720_320, VAE_PARAMETERS), 128, 77 * 2048 + 1280 + 6)

KNOWN = {"sd-1.5": SD_1_5, "sd-2.1": SD_2_1, "sd-2.1-768": SD_2_1_768, "sdxl": SDXL}
