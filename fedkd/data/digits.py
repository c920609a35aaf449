"""The embedded default data: real handwritten digits of scikit-learn, coloured and captioned."""

from __future__ import annotations

import numpy as np
from PIL import Image
from sklearn.datasets import load_digits

DIGITS = ("zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine")
COLOURS: dict[str, tuple[int, int, int]] = {
    "red": (214, 40, 40),
    "green": (46, 160, 67),
    "blue": (36, 84, 214),
    "yellow": (246, 211, 45),
    "purple": (136, 57, 180),
    "orange": (245, 133, 30),
    "white": (245, 245, 245),
    "black": (20, 20, 20),
}
TEMPLATE = "a {ink} {digit} on a {background} background"
# Disjoint shares of the 1,797 handwritten digits: nothing that trains the base, the users' private
# pictures, or the judge is ever seen by one of the others.
SPLITS = {"base": (0.0, 0.45), "private": (0.45, 0.75), "judge": (0.75, 1.0)}


def handwriting(split: str) -> tuple[np.ndarray, np.ndarray]:
    """(N, 8, 8) float strokes in [0, 1] and (N,) int labels of one split."""
    images, labels = load_digits(return_X_y=True)
    order = np.random.default_rng(20).permutation(len(labels))
    low, high = (round(share * len(labels)) for share in SPLITS[split])
    chosen = order[low:high]
    return images[chosen].reshape(-1, 8, 8) / 16.0, labels[chosen]


def render(strokes: np.ndarray, ink: str, background: str, resolution: int) -> Image.Image:
    """One 8×8 digit enlarged, sharpened and painted: an RGB picture of `resolution`² pixels."""
    grey = Image.fromarray((strokes * 255).astype(np.uint8)).resize((resolution, resolution), Image.Resampling.BICUBIC)
    mask = 1 / (1 + np.exp(-12 * (np.asarray(grey, dtype=np.float64)[..., None] / 255 - 0.45)))
    paint = mask * np.array(COLOURS[ink]) + (1 - mask) * np.array(COLOURS[background])
    return Image.fromarray(paint.round().astype(np.uint8))


def coloured_digits(split: str, resolution: int, seed: int, copies: int = 1) -> list[dict[str, object]]:
    """Rows of `image`, `caption`, `label` (0..9): each handwritten digit `copies` times in random colours."""
    rng = np.random.default_rng(seed)
    names = list(COLOURS)
    rows: list[dict[str, object]] = []
    for strokes, label in zip(*handwriting(split), strict=True):
        for _ in range(copies):
            ink, background = (names[i] for i in rng.choice(len(names), 2, replace=False))
            caption = TEMPLATE.format(ink=ink, digit=DIGITS[label], background=background)
            rows.append(
                {
                    "image": render(strokes, ink, background, resolution),
                    "caption": caption,
                    "label": int(label),
                }
            )
    return rows
