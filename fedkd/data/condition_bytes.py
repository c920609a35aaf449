"""A visual condition on the wire: smaller, in the fewest bytes of three formats, and what comes out of them again."""

from __future__ import annotations

import io
from dataclasses import dataclass

from PIL import Image

from fedkd.data.source_image import SourceError, read_source

MAX_BYTES = 1 << 20  # of one packed condition; a Canny map of 512² has about 10 kB
MAX_PIXELS = 2048**2
FORMATS = ("PNG", "WEBP", "JPEG")


@dataclass(frozen=True)
class PackedCondition:
    """`data` as it travels, and the format it is in."""

    data: bytes
    form: str

    @property
    def size_bytes(self) -> int:
        """What travels."""
        return len(self.data)


def pack(condition: Image.Image, resolution: float = 1.0, level: float = 1.0) -> PackedCondition:
    """`condition` at `resolution` of its side and `level` of the quality (VCE's alpha and beta, 0 to 1, 0 left out).

    The smallest of PNG, WebP and JPEG: lossless ones at level 1, and wherever they are no larger than the lossy
    ones. ValueError for levels out of range.
    """
    for name, value in (("resolution", resolution), ("level", level)):
        if not 0 < value <= 1:
            raise ValueError(f"{name}={value:g} is out of range; give more than 0 and at most 1")
    small = condition.convert("RGB")
    if resolution < 1:
        width, height = small.size
        size = max(1, round(width * resolution)), max(1, round(height * resolution))
        small = small.resize(size, Image.Resampling.BILINEAR)
    grey = small.convert("L")
    plain = grey if grey.convert("RGB").tobytes() == small.tobytes() else small
    two = len(grey.getcolors() or range(3)) <= 2 and set(grey.getextrema()) <= {0, 255}
    if two and plain is grey:
        plain = grey.convert("1", dither=Image.Dither.NONE)
    quality = max(1, min(95, round(95 * level)))
    found = [_packed(plain, "PNG", optimize=True), _packed(small, "WEBP", lossless=True, quality=100, method=6)]
    if level < 1:
        found += [_packed(small, "WEBP", quality=quality, method=6), _packed(plain, "JPEG", quality=quality)]
    return min(found, key=lambda each: each.size_bytes)


def arrived(data: bytes, side: tuple[int, int], field: str = "condition.image") -> Image.Image:
    """The condition that `data` packs, at `side` (width, height) pixels, in RGB; SourceError for anything else."""
    if len(data) > MAX_BYTES:
        raise SourceError(
            f"{field} has {len(data):,} bytes; give at most {MAX_BYTES:,}: compress it more", "image_too_large"
        )
    image = read_source(data, field, max_pixels=MAX_PIXELS)
    return image if image.size == side else image.resize(side, Image.Resampling.BILINEAR)


def compress(condition: Image.Image, resolution: float, level: float) -> tuple[Image.Image, int]:
    """(what arrives, enlarged again; its bytes) of `pack`."""
    packed = pack(condition, resolution, level)
    return arrived(packed.data, condition.size), packed.size_bytes


def _packed(image: Image.Image, form: str, **options: object) -> PackedCondition:
    if image.mode == "1" and form != "PNG":
        image = image.convert("L")
    buffer = io.BytesIO()
    image.save(buffer, form, **options)
    return PackedCondition(buffer.getvalue(), form.lower())
