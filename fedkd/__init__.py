"""fedkd: federated distillation of Stable Diffusion, and split inference between device and edge."""

__version__ = "0.1.0"
