"""A Stable Diffusion model as components; LoRA adapters; sizes and FLOPs."""
