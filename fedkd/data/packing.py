"""Captioned images as Parquet bytes between parties: schema version, size limit, digest."""

from __future__ import annotations

import hashlib
import io
from collections.abc import Iterable, Iterator
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
from datasets import Dataset
from PIL import Image

from fedkd.data.sources import FEATURES, to_dataset

SCHEMA_VERSION = b"1"
MAX_BYTES = 256 * 2**20
MAX_SIDE = 4096
MAX_CAPTION = 10_000
COLUMNS = ("image", "caption", "label")


class PackError(ValueError):
    """Parquet bytes that are not a packed set of captioned images."""


def pack_dataset(dataset: Dataset) -> bytes:
    """The dataset's `image` (as PNG, metadata stripped), `caption` and `label` as Parquet bytes."""
    pictures, captions, labels = [], [], []
    for row in dataset:
        buffer = io.BytesIO()
        row["image"].convert("RGB").save(buffer, "PNG")
        pictures.append(buffer.getvalue())
        captions.append(row["caption"])
        labels.append(int(row.get("label", -1)))
    table = pa.table(
        {"image": pa.array(pictures, pa.binary()), "caption": captions, "label": pa.array(labels, pa.int64())}
    )
    out = io.BytesIO()
    pq.write_table(table.replace_schema_metadata({b"fedkd.schema": SCHEMA_VERSION}), out)
    return out.getvalue()


def digest(data: bytes) -> str:
    """sha256 of packed bytes."""
    return hashlib.sha256(data).hexdigest()


def unpack_dataset(
    data: bytes, max_bytes: int = MAX_BYTES, *, max_pictures: int | None = None, side: int | None = None
) -> Dataset:
    """The packed dataset; PackError when too large, of another schema, or with a broken picture.

    `max_pictures` bounds how many there are, `side` (pixels) says how wide and high each has to be.
    """
    return to_dataset(list(unpack_rows(data, max_bytes, max_pictures=max_pictures, side=side)))


def unpack_rows(
    data: bytes, max_bytes: int = MAX_BYTES, *, max_pictures: int | None = None, side: int | None = None
) -> Iterator[dict[str, object]]:
    """The rows of `unpack_dataset` one after another; PackError comes when the bad one is reached."""
    if len(data) > max_bytes:
        raise PackError(f"the set has {len(data)} bytes, more than the {max_bytes} allowed")
    table = _table(data, max_pictures)
    # Column by column and picture by picture: a few bytes of Parquet can stand for any number of rows.
    columns = [table.column(name) for name in COLUMNS]
    for index in range(table.num_rows):
        image, caption, label = (column[index].as_py() for column in columns)
        yield {"image": _picture(image, index, side), "caption": _caption(caption, index), "label": _label(label)}


def gather(sets: Iterable[bytes], path: Path) -> Dataset:
    """Many packed sets as one dataset that lies in the Arrow file `path`: memory does not grow with the pictures.

    PackError when a set is broken.
    """
    from datasets.arrow_writer import ArrowWriter

    path.parent.mkdir(parents=True, exist_ok=True)
    with ArrowWriter(path=str(path), features=FEATURES) as writer:
        for data in sets:
            for row in unpack_rows(data, len(data)):
                writer.write(FEATURES.encode_example(row))
        writer.finalize()
    return Dataset.from_file(str(path))


def _table(data: bytes, max_pictures: int | None) -> pa.Table:
    try:
        about = pq.read_metadata(io.BytesIO(data))
        version, names = (about.metadata or {}).get(b"fedkd.schema"), about.schema.names
    except Exception as error:
        raise PackError(f"the set is not Parquet: {error}") from error
    if version != SCHEMA_VERSION:
        raise PackError(f"the set has schema version {version!r}; this fedkd reads {SCHEMA_VERSION!r}")
    if not set(COLUMNS) <= set(names):
        raise PackError(f"the set has columns {names}; it needs {', '.join(COLUMNS)}")
    if max_pictures is not None and about.num_rows > max_pictures:
        raise PackError(f"the set has {about.num_rows} pictures, more than the {max_pictures} allowed")
    try:
        file = pq.ParquetFile(io.BytesIO(data), metadata=about, read_dictionary=["image"])
        return file.read(columns=list(COLUMNS), use_threads=False)
    except Exception as error:
        raise PackError(f"the set is not Parquet: {error}") from error


def _picture(data: object, index: int, side: int | None) -> Image.Image:
    try:
        opened = Image.open(io.BytesIO(data), formats=["PNG"])  # type: ignore[arg-type]
        if side is not None and opened.size != (side, side):
            raise PackError(f"picture {index} of the set is {opened.size}; it has to be {side} pixels wide and high")
        if max(opened.size) > MAX_SIDE:
            raise PackError(f"picture {index} of the set is {opened.size}; at most {MAX_SIDE} pixels a side")
        return opened.convert("RGB")
    except PackError:
        raise
    except Exception as error:
        raise PackError(f"picture {index} of the set is broken: {error}") from error


def _caption(text: object, index: int) -> str:
    if not isinstance(text, str):
        raise PackError(f"caption {index} of the set is not text")
    if len(text) > MAX_CAPTION:
        raise PackError(f"caption {index} of the set has {len(text)} characters; at most {MAX_CAPTION}")
    return text


def _label(value: object) -> int:
    return value if isinstance(value, int) else -1
