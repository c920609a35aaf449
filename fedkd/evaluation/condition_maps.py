"""Visual conditions of a picture that need no network: edges, soft edges, colour regions; and how they compress."""

from __future__ import annotations

import io
from collections.abc import Callable

import numpy as np
from PIL import Image, ImageFilter

EDGE_SHARE = 0.12  # of the pixels with the largest gradient become edges
COLOURS = 6


def gradient(image: Image.Image) -> np.ndarray:
    """(H, W) gradient magnitude in 0..1 of the grey, slightly blurred picture (Sobel)."""
    grey = np.asarray(image.convert("L").filter(ImageFilter.GaussianBlur(0.6)), float) / 255
    wide = np.pad(grey, 1, mode="edge")
    across = wide[:, 2:] - wide[:, :-2]
    along = wide[2:] - wide[:-2]
    x = across[:-2] + 2 * across[1:-1] + across[2:]
    y = along[:, :-2] + 2 * along[:, 1:-1] + along[:, 2:]
    size = np.hypot(x, y)
    return size / max(float(size.max()), 1e-9)


def edges(image: Image.Image) -> Image.Image:
    """Thin white lines on black where brightness changes most, as a Canny map has them."""
    size = gradient(image)
    threshold = max(float(np.quantile(size, 1 - EDGE_SHARE)), 1e-6)
    return _grey(np.where(size >= threshold, 255, 0))


def soft_edges(image: Image.Image) -> Image.Image:
    """How much brightness changes, in shades, as a HED map has it."""
    return _grey(np.rint(255 * np.sqrt(gradient(image))))


def regions(image: Image.Image) -> Image.Image:
    """Flat areas of a few colours, which stand for segments."""
    return (
        image.convert("RGB").quantize(COLOURS, method=Image.Quantize.MEDIANCUT, dither=Image.Dither.NONE).convert("RGB")
    )


EXTRACTORS: dict[str, Callable[[Image.Image], Image.Image]] = {
    "canny": edges,
    "soft-edge": soft_edges,
    "seg": regions,
}


def compress(condition: Image.Image, resolution: float, level: float) -> tuple[Image.Image, int]:
    """(what arrives, enlarged again; its bytes) of a JPEG at `resolution` of the side and `level` of the quality."""
    side = condition.size
    small = condition.resize(
        (max(1, round(side[0] * resolution)), max(1, round(side[1] * resolution))), Image.Resampling.BILINEAR
    )
    packed = io.BytesIO()
    small.save(packed, "JPEG", quality=max(1, min(95, round(95 * level))))
    arrived = Image.open(io.BytesIO(packed.getvalue())).convert("RGB")
    return arrived.resize(side, Image.Resampling.BILINEAR), packed.tell()


def _grey(values: np.ndarray) -> Image.Image:
    return Image.fromarray(values.astype(np.uint8)).convert("RGB")
