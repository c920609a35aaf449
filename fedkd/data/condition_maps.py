"""Visual conditions of a picture that need no network: edges, soft edges, depth, segments."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
from PIL import Image
from scipy import ndimage

# Canny's two thresholds, as shares of the largest gradient; below FAINTEST nothing counts as an edge.
HIGH, LOW, FAINTEST = 0.3, 0.12, 0.02
COLOURS = 6
BORDER_SHARE = 0.06  # of the side: what is taken for background
UPRIGHT = 0.15  # weight of "what is lower is nearer", beside "what differs from the border is nearer"


def gradient(image: Image.Image) -> tuple[np.ndarray, np.ndarray]:
    """(across, along), each (H, W): the Sobel gradient of whichever colour channel changes most at a pixel.

    Values are shares of the channel's range; the picture is smoothed first, more the larger it is.
    """
    pixels = np.asarray(image.convert("RGB"), np.float32) / 255
    sigma = min(1.4, max(0.6, min(image.size) / 365))  # Canny's usual 1.4 at 512 pixels
    smooth = ndimage.gaussian_filter(pixels, (sigma, sigma, 0), mode="nearest")
    across, along = (ndimage.sobel(smooth, axis, mode="nearest") / 8 for axis in (1, 0))
    strongest = np.hypot(across, along).argmax(axis=2)[..., None]
    return np.take_along_axis(across, strongest, 2)[..., 0], np.take_along_axis(along, strongest, 2)[..., 0]


def canny(image: Image.Image) -> Image.Image:
    """Thin white lines on black (Canny 1986): gradient, non-maximum suppression, hysteresis of two thresholds."""
    across, along = gradient(image)
    size = np.hypot(across, along)
    most = float(size.max())
    if most < FAINTEST:
        return _grey(np.zeros(size.shape))
    wide = np.pad(size, 1)
    # of four directions the nearest to the gradient's, and the two neighbours that lie in it
    direction = np.rint(np.arctan2(along, across) / (np.pi / 4)).astype(int) % 4
    steps = ((0, 1), (1, 1), (1, 0), (1, -1))
    height, width = size.shape

    def shifted(down: int, right: int) -> np.ndarray:
        return wide[1 + down : 1 + down + height, 1 + right : 1 + right + width]

    ahead = np.choose(direction, [shifted(down, right) for down, right in steps])
    behind = np.choose(direction, [shifted(-down, -right) for down, right in steps])
    ridge = (size >= ahead) & (size > behind)  # one of two equal neighbours, not both
    weak, strong = ridge & (size >= LOW * most), ridge & (size >= HIGH * most)
    lines, count = ndimage.label(weak, structure=np.ones((3, 3)))
    kept = np.zeros(count + 1, bool)
    kept[np.unique(lines[strong])] = True
    kept[0] = False
    return _grey(255 * kept[lines])


def soft_edges(image: Image.Image) -> Image.Image:
    """How much colours change, in shades, as a HED map (Xie and Tu 2015) has it; without HED's network."""
    size = np.hypot(*gradient(image))
    return _grey(np.rint(255 * np.sqrt(size / max(float(size.max()), FAINTEST))))


def depth(image: Image.Image) -> Image.Image:
    """A guess of depth, near white and far black: what differs from the picture's border stands before it.

    No network has seen the world for it: two cues of composition (the border is background; what is lower is
    nearer) stand in for one. A map from a depth network is given as an extracted condition instead.
    """
    pixels = np.asarray(image.convert("RGB"), np.float32) / 255
    height, width = pixels.shape[:2]
    rim = max(1, round(BORDER_SHARE * min(height, width)))
    inner = np.zeros((height, width), bool)
    inner[rim : height - rim, rim : width - rim] = True
    away = np.linalg.norm(pixels - np.median(pixels[~inner], axis=0), axis=2)
    away = ndimage.gaussian_filter(away, max(0.5, min(height, width) / 128), mode="nearest")
    lower = np.linspace(0, 1, height, dtype=np.float32)[:, None]
    near = (1 - UPRIGHT) * away / max(float(away.max()), FAINTEST) + UPRIGHT * lower
    return _grey(np.rint(255 * np.clip(near, 0, 1)))


def segments(image: Image.Image) -> Image.Image:
    """Flat areas of a few colours (median cut), which stand for segments; they have no names."""
    return (
        image.convert("RGB").quantize(COLOURS, method=Image.Quantize.MEDIANCUT, dither=Image.Dither.NONE).convert("RGB")
    )


EXTRACTORS: dict[str, Callable[[Image.Image], Image.Image]] = {
    "canny": canny,
    "soft-edge": soft_edges,
    "depth": depth,
    "seg": segments,
}
KINDS = tuple(EXTRACTORS)


def agreement(condition: Image.Image, drawn: Image.Image, tolerance: int = 1) -> float:
    """How far the Canny lines of `drawn` are those of the Canny map `condition`: F1, 0 to 1.

    A pixel of a line is found where the other map has one within `tolerance` pixels (as boundaries are matched in
    segmentation benchmarks; Martin, Fowlkes and Malik 2004). 1 where neither has a line.
    """
    wanted, found = (np.asarray(each.convert("L")) > 127 for each in (condition, canny(drawn)))
    if not wanted.any() or not found.any():
        return float(wanted.any() == found.any())
    near = np.ones((2 * tolerance + 1,) * 2)
    recall = ndimage.binary_dilation(found, near)[wanted].mean()
    precision = ndimage.binary_dilation(wanted, near)[found].mean()
    return float(2 * recall * precision / max(recall + precision, 1e-9))


def _grey(values: np.ndarray) -> Image.Image:
    return Image.fromarray(values.astype(np.uint8)).convert("RGB")
