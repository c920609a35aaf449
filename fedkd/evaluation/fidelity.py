"""FID and KID between sets of pictures, on the features of the reference classifier, through torchmetrics."""

from __future__ import annotations

import warnings

import torch
from PIL import Image
from torch import nn
from torchmetrics.image.fid import FrechetInceptionDistance
from torchmetrics.image.kid import KernelInceptionDistance

from fedkd.evaluation.classifier import ReferenceClassifier
from fedkd.models.latents import to_pixels

KID_SUBSETS = 20


class FidelityError(ValueError):
    """Sets of pictures that cannot be compared."""


class ClassifierFeatures(nn.Module):
    """The classifier before its heads: (B, 3, side, side) pixels in [-1, 1] to features (B, num_features)."""

    def __init__(self, classifier: ReferenceClassifier) -> None:
        super().__init__()
        self.body = classifier.eval().body
        self.num_features = next(head.in_features for head in classifier.heads.values() if isinstance(head, nn.Linear))

    def forward(self, pixels: torch.Tensor) -> torch.Tensor:
        """Features (B, num_features) of pictures."""
        return self.body(pixels)


@torch.no_grad()
def fidelity(
    real: list[Image.Image],
    drawn: list[Image.Image],
    classifier: ReferenceClassifier,
    resolution: int,
    *,
    seed: int = 0,
    batch: int = 128,
) -> dict[str, float]:
    """{"fid", "kid"} of `drawn` against `real` pictures, 0 for equal distributions; smaller is better.

    Frechet distance of two Gaussians (Heusel et al. 2017) and unbiased MMD² with the kernel (x·y/F + 1)³
    (Bińkowski et al. 2018) over subsets that `seed` draws. Both depend on how many pictures there are:
    compare sets of equal size. Raises FidelityError with fewer than two pictures on a side.
    """
    if min(len(real), len(drawn)) < 2:
        raise FidelityError(f"{len(real)} real and {len(drawn)} drawn pictures cannot be compared; give two or more")
    features = ClassifierFeatures(classifier)
    with torch.random.fork_rng(devices=[]), warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="Metric `Kernel Inception Distance`")  # it keeps all features
        torch.manual_seed(seed)
        fid = FrechetInceptionDistance(feature=features)
        kid = KernelInceptionDistance(feature=features, subsets=KID_SUBSETS, subset_size=min(len(real), len(drawn)))
        for images, is_real in ((real, True), (drawn, False)):
            for start in range(0, len(images), batch):
                pixels = to_pixels(images[start : start + batch], resolution)
                fid.update(pixels, real=is_real)
                kid.update(pixels, real=is_real)
        return {"fid": float(fid.compute()), "kid": float(kid.compute()[0])}
