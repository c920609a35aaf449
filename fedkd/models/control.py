"""A UNet and the ControlNet that steers it, as one denoiser; and the pixels that a ControlNet is shown."""

from __future__ import annotations

from typing import Any

import torch
from diffusers.image_processor import VaeImageProcessor
from PIL import Image


def control_pixels(image: Image.Image, size: tuple[int, int]) -> torch.Tensor:
    """What diffusers' ControlNet pipelines show of `image`: (1, 3, H, W) float32 in [0, 1] at `size` (width, height).

    Bit for bit what `prepare_image` makes of it, without a pipeline.
    """
    processor = VaeImageProcessor(vae_scale_factor=1, do_convert_rgb=True, do_normalize=False)
    return processor.preprocess(image, height=size[1], width=size[0]).to(torch.float32)


def control_conditions(pixels: torch.Tensor, *, rows: int, scale: float = 1.0) -> dict[str, torch.Tensor]:
    """`pixels` (1, 3, H, W) as a denoiser's conditions.

    `control_image` (rows, 3, H, W), the same in every row, and `control_scale` (rows, 1, 1, 1) float32.
    """
    return {
        "control_image": pixels.expand(rows, -1, -1, -1),
        "control_scale": torch.full((rows, 1, 1, 1), scale, dtype=torch.float32, device=pixels.device),
    }


class ControlledUNet(torch.nn.Module):
    """A UNet whose features a ControlNet adds to; without a control image, the UNet alone.

    The ControlNet's residuals are weighted by a scale for each row, (B, 1, 1, 1), so that pictures with
    other scales, and guidance rows, share a forward.
    """

    def __init__(self, unet: Any, controlnet: Any) -> None:
        super().__init__()
        self.unet, self.controlnet = unet, controlnet

    @classmethod
    def of(cls, pipe: Any) -> ControlledUNet:
        """The denoiser of a StableDiffusionControlNetPipeline, which keeps its own networks."""
        return cls(pipe.unet, pipe.controlnet)

    @property
    def config(self) -> Any:
        """The UNet's config."""
        return self.unet.config

    def forward(
        self,
        latents: torch.Tensor,
        timesteps: torch.Tensor,
        encoder_hidden_states: torch.Tensor,
        *,
        control_image: torch.Tensor | None = None,
        control_scale: torch.Tensor | None = None,
        added_cond_kwargs: dict[str, torch.Tensor] | None = None,
        return_dict: bool = False,
    ) -> tuple[torch.Tensor]:
        """One raw output (B, C, h, w) in a tuple, as the UNet gives it without `return_dict`."""
        residuals: dict[str, Any] = {}
        if control_image is not None:
            down, middle = self.controlnet(
                latents,
                timesteps,
                encoder_hidden_states=encoder_hidden_states,
                controlnet_cond=control_image,
                conditioning_scale=1.0 if control_scale is None else control_scale,
                return_dict=False,
            )
            residuals = {
                # a float32 scale promotes half-precision residuals; back, they are the pipeline's own
                "down_block_additional_residuals": [residual.to(latents.dtype) for residual in down],
                "mid_block_additional_residual": middle.to(latents.dtype),
            }
        return self.unet(
            latents,
            timesteps,
            encoder_hidden_states=encoder_hidden_states,
            added_cond_kwargs=added_cond_kwargs,
            return_dict=False,
            **residuals,
        )
