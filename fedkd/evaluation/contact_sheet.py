"""Many small pictures on one sheet."""

from __future__ import annotations

from collections.abc import Sequence

from PIL import Image


def contact_sheet(images: Sequence[Image.Image], *, columns: int = 8, scale: int = 1, gap: int = 2) -> Image.Image:
    """Lay pictures out in rows of `columns`, enlarged `scale` times without smoothing, `gap` pixels apart.

    Every cell has the size of the largest picture. Raises ValueError without pictures.
    """
    if not images:
        raise ValueError("images is empty; give at least one picture")
    columns = min(columns, len(images))
    width = max(image.width for image in images) * scale
    height = max(image.height for image in images) * scale
    rows = -(-len(images) // columns)
    sheet = Image.new("RGB", (columns * (width + gap) + gap, rows * (height + gap) + gap), "white")
    for index, image in enumerate(images):
        row, column = divmod(index, columns)
        larger = (image.width * scale, image.height * scale)
        cell = image.convert("RGB").resize(larger, Image.Resampling.NEAREST)
        sheet.paste(cell, (gap + column * (width + gap), gap + row * (height + gap)))
    return sheet
