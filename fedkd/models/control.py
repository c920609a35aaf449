"""A UNet and the ControlNet that steers it, as one denoiser."""

from __future__ import annotations

from typing import Any

import torch


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
