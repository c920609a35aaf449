"""The pieces of EUCI Eqs. 5-7 as pure functions: c(t), d(a, b), lambda, and the total."""

from __future__ import annotations

import functools
from collections.abc import Callable

import torch
from torch.nn import functional as F
from torchmetrics.functional.image import structural_similarity_index_measure

Decode = Callable[[torch.Tensor], torch.Tensor]


def timestep_weight(snr: torch.Tensor, kind: str, min_snr_k: float = 5.0) -> torch.Tensor:
    """c(t) (B,) of EUCI Eq. 6 from SNR (B,): uniform, alphas_cumprod, snr, truncated_snr or min_snr."""
    match kind:
        case "uniform":
            return torch.ones_like(snr)
        case "alphas_cumprod":
            return snr / (1 + snr)
        case "snr":
            return snr
        case "truncated_snr":
            return snr.clamp(min=1.0)
        case "min_snr":
            return snr.clamp(max=min_snr_k)
    raise ValueError(f"distillation.weighting={kind!r} is not a timestep weight")


def distance(
    a: torch.Tensor, b: torch.Tensor, kind: str, *, huber_delta: float = 0.1, decode: Decode | None = None
) -> torch.Tensor:
    """d(a, b) (B,) of EUCI Eq. 6 between latents (B, C, h, w): mse, huber, or 1-SSIM / LPIPS on decoded pictures."""
    match kind:
        case "mse":
            return F.mse_loss(a, b, reduction="none").flatten(1).mean(1)
        case "huber":
            return F.huber_loss(a, b, reduction="none", delta=huber_delta).flatten(1).mean(1)
    if decode is None:
        raise ValueError(f"distillation.distance={kind!r} compares pictures and needs the VAE's decoder")
    left, right = decode(a).clamp(-1, 1), decode(b).clamp(-1, 1)
    if kind == "ssim":
        similarity = structural_similarity_index_measure(left, right, data_range=2.0, sigma=1.0, reduction="none")
        return 1 - torch.as_tensor(similarity)
    if kind == "lpips":
        return _lpips().to(left.device)(left, right).flatten()
    raise ValueError(f"distillation.distance={kind!r} is not a distance")


@functools.cache
def _lpips() -> torch.nn.Module:
    try:
        import lpips
    except ImportError as error:
        raise ValueError("distillation.distance='lpips' needs `pip install fedkd[lpips]` and its weights") from error
    return lpips.LPIPS(net="vgg", verbose=False).eval().requires_grad_(False)


def normalised(weights: torch.Tensor) -> torch.Tensor:
    """Rows of non-negative `weights` (..., B) scaled to sum to one; a row of zeros becomes uniform."""
    total = weights.sum(-1, keepdim=True)
    uniform = torch.full_like(weights, 1 / weights.shape[-1])
    return torch.where(total > 0, weights / torch.where(total > 0, total, 1.0), uniform)


def drawn(weights: torch.Tensor, generator: torch.Generator) -> torch.Tensor:
    """One-hot rows with b ~ lambda: the unbiased `sampled` form of sum_b lambda_b E_b."""
    chosen = torch.multinomial(weights, 1, generator=generator)
    return torch.zeros_like(weights).scatter_(1, chosen, 1.0)


def total_loss(task: torch.Tensor, distill: torch.Tensor, gamma: float) -> torch.Tensor:
    """L = (1-gamma) L_task + gamma L_distill (EUCI Eq. 7)."""
    return (1 - gamma) * task + gamma * distill
