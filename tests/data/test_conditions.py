"""Source pictures are looked at before they are decoded; conditions are extracted, packed small, and come out again."""

from __future__ import annotations

import io
import struct
import zlib

import numpy as np
import pytest
from PIL import Image

from fedkd.data.condition_bytes import MAX_BYTES, arrived, pack
from fedkd.data.condition_maps import EXTRACTORS, KINDS, agreement, canny
from fedkd.data.digits import handwriting, render
from fedkd.data.source_image import SourceError, fitted, read_source, read_source_file


def digit(label: int) -> Image.Image:
    strokes, labels = handwriting("judge")
    return render(strokes[list(labels).index(label)], "red", "blue", 128)


@pytest.fixture(scope="module")
def seven() -> Image.Image:
    return digit(7)


def as_bytes(image: Image.Image, form: str = "PNG", **options: object) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, form, **options)
    return buffer.getvalue()


def bomb(width: int, height: int) -> bytes:
    """A PNG whose header promises so many pixels, and that has none."""

    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    header = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(b"")) + chunk(b"IEND", b"")


@pytest.mark.parametrize("kind", KINDS)
def test_a_condition_has_the_pictures_size_and_is_the_same_each_time(kind: str, seven: Image.Image) -> None:
    found = EXTRACTORS[kind](seven)
    assert (found.size, found.mode) == (seven.size, "RGB")
    assert found.tobytes() == EXTRACTORS[kind](seven).tobytes()
    assert len(set(found.convert("L").getdata())) > 1


@pytest.mark.parametrize("kind", KINDS)
def test_a_picture_of_one_colour_has_a_condition_too(kind: str) -> None:
    EXTRACTORS[kind](Image.new("RGB", (33, 17), "red"))


def test_canny_lines_are_thin_and_lie_where_the_colour_changes() -> None:
    square = Image.new("RGB", (64, 64), "blue")
    square.paste((255, 0, 0), (20, 20, 44, 44))
    lines = np.asarray(canny(square).convert("L")) > 0
    assert not lines[:17].any() and not lines[24:40, 24:40].any()
    assert 80 <= lines.sum() <= 120  # a square of 24 pixels a side has 96 on its rim
    assert not canny(Image.new("RGB", (64, 64), "red")).getbbox()


def test_agreement_of_edges_is_1_with_oneself_and_low_with_another(seven: Image.Image) -> None:
    other = digit(0)
    assert agreement(canny(seven), seven) == 1
    assert agreement(canny(seven), other) < 0.5


@pytest.mark.parametrize("kind", KINDS)
def test_a_packed_condition_comes_out_as_it_was_and_smaller_levels_are_smaller(kind: str, seven: Image.Image) -> None:
    condition = EXTRACTORS[kind](seven)
    whole = pack(condition)
    assert arrived(whole.data, condition.size).tobytes() == condition.tobytes()
    assert pack(condition, 0.25, 0.2).size_bytes < whole.size_bytes < len(as_bytes(seven, "BMP")) / 10
    assert arrived(pack(condition, 0.25, 0.2).data, condition.size).size == condition.size


@pytest.mark.parametrize(("resolution", "level"), [(0, 1), (1.5, 1), (1, -1), (1, float("nan"))])
def test_levels_out_of_range_are_refused(resolution: float, level: float, seven: Image.Image) -> None:
    with pytest.raises(ValueError, match="out of range"):
        pack(canny(seven), resolution, level)


def frames() -> bytes:
    pictures = [Image.new("RGB", (8, 8), colour) for colour in ("red", "blue")]
    return as_bytes(pictures[0], "GIF", save_all=True, append_images=pictures[1:])


@pytest.mark.parametrize(
    ("data", "said"),
    [
        (b"no picture at all", "is no picture"),
        (b"", "is no picture"),
        (b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n", "is no picture"),  # nothing is handed to Ghostscript
        (bomb(10_000, 10_000), "10000x10000 = 100 megapixels; give at most 64"),
        (bomb(60_000, 60_000), "megapixels"),
        (frames(), "is animated; give a still picture"),
        (as_bytes(Image.effect_noise((64, 64), 90))[:900], "ends too early"),
        (as_bytes(Image.effect_noise((64, 64), 90).convert("RGB"), "JPEG")[:700], "ends too early"),
    ],
)
def test_what_is_no_still_picture_of_a_sane_size_is_refused_in_a_line(data: bytes, said: str) -> None:
    with pytest.raises(SourceError, match=r"^--source photo") as raised:
        read_source(data, "--source", "photo")
    assert said in str(raised.value) and "\n" not in str(raised.value)


def test_a_source_is_upright_and_transparency_is_white() -> None:
    exif = Image.Exif()
    exif[0x0112] = 6  # turned by a quarter
    assert read_source(as_bytes(Image.new("RGB", (20, 10)), "JPEG", exif=exif), "image").size == (10, 20)
    clear = Image.new("RGBA", (4, 4), (255, 0, 0, 0))
    assert read_source(as_bytes(clear), "image").getpixel((0, 0)) == (255, 255, 255)


def test_a_file_that_is_not_there_and_a_condition_that_is_too_large_are_named(tmp_path) -> None:
    with pytest.raises(SourceError, match=r"--source .*none.png cannot be read"):
        read_source_file(tmp_path / "none.png")
    with pytest.raises(SourceError, match=r"condition\.image has"):
        arrived(b"x" * (MAX_BYTES + 1), (32, 32))


def test_a_source_is_cropped_to_the_middle_not_squashed() -> None:
    wide = Image.new("RGB", (300, 100), "blue")
    wide.paste((255, 0, 0), (80, 0, 220, 100))
    assert fitted(wide, (20, 20)).getcolors() == [(400, (255, 0, 0))]
