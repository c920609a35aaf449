"""A picture that somebody gives: opened with care, refused in one line where it is none, too large or moves."""

from __future__ import annotations

import io
import warnings
from pathlib import Path

from PIL import Image, ImageOps, UnidentifiedImageError

# JPEG stands for MPO too, which many phones write as .jpg: the picture, and a preview behind it.
FORMATS = ("PNG", "JPEG", "WEBP", "GIF", "BMP")
TOLD = "PNG, JPEG, WebP, GIF or BMP"
MAX_PIXELS = 64_000_000  # of a source: above every phone's ordinary mode; 200 MB once it is decoded
MAX_FILE_BYTES = 200 << 20

warnings.simplefilter("ignore", Image.DecompressionBombWarning)  # the header's size is checked here, and more strictly


class SourceError(ValueError):
    """A source picture that cannot be used; the message names the field, the value and the fix.

    `code` is one word for programs: invalid_image, too_many_pixels, animated_image, truncated_image, image_too_large.
    """

    def __init__(self, message: str, code: str = "invalid_image") -> None:
        super().__init__(message)
        self.code = code


def read_source(data: bytes, field: str, name: str = "", *, max_pixels: int = MAX_PIXELS) -> Image.Image:
    """The picture in `data`, upright and in RGB, transparency on white.

    SourceError, which names `field` (and the file's `name`), for what is no still picture of a known format, has
    more than `max_pixels` (known from its header, before anything is decoded), or ends too early.
    """
    what = f"{field}{' ' + name if name else ''}"
    try:
        image = Image.open(io.BytesIO(data), formats=FORMATS)
    except Image.DecompressionBombError as error:
        raise SourceError(
            f"{what} is larger than {max_pixels / 1e6:g} megapixels; make it smaller", "too_many_pixels"
        ) from error
    except (UnidentifiedImageError, OSError, ValueError, SyntaxError, EOFError, OverflowError) as error:
        raise SourceError(f"{what} is no picture ({len(data):,} bytes); give a {TOLD} file") from error
    with image:
        width, height = image.size
        if width * height > max_pixels:
            raise SourceError(
                f"{what} has {width}x{height} = {width * height / 1e6:.3g} megapixels; give at most "
                f"{max_pixels / 1e6:g}: make it smaller",
                "too_many_pixels",
            )
        if image.format != "MPO" and getattr(image, "is_animated", False):
            raise SourceError(f"{what} is animated; give a still picture", "animated_image")
        try:
            image.load()
            return _flat(ImageOps.exif_transpose(image))
        except (OSError, ValueError, SyntaxError, EOFError, OverflowError, IndexError) as error:
            raise SourceError(
                f"{what} is damaged or ends too early ({width}x{height}); give the whole file", "truncated_image"
            ) from error


def read_source_file(path: Path, field: str = "--source") -> Image.Image:
    """`read_source` of a file; SourceError where it cannot be read."""
    try:
        size = path.stat().st_size
        if size > MAX_FILE_BYTES:
            raise SourceError(f"{field} {path} has {size / 1e6:,.0f} MB; give at most {MAX_FILE_BYTES / 1e6:,.0f} MB")
        data = path.read_bytes()
    except OSError as error:
        raise SourceError(f"{field} {path} cannot be read: {error.strerror}; give a {TOLD} file") from error
    return read_source(data, field, str(path))


def fitted(image: Image.Image, size: tuple[int, int]) -> Image.Image:
    """The middle of `image` at `size` (width, height): cropped to its shape, nothing squashed."""
    return image if image.size == size else ImageOps.fit(image, size, Image.Resampling.LANCZOS)


def _flat(image: Image.Image) -> Image.Image:
    if "A" in image.getbands() or "transparency" in image.info:
        seen = image.convert("RGBA")
        return Image.alpha_composite(Image.new("RGBA", seen.size, "white"), seen).convert("RGB")
    return image.convert("RGB")
