"""Captioned images as Parquet bytes between parties: schema version, size limit, digest."""

from __future__ import annotations

import hashlib
import io

import pyarrow as pa
import pyarrow.parquet as pq
from datasets import Dataset
from PIL import Image

from fedkd.data.sources import to_dataset

SCHEMA_VERSION = b"1"
MAX_BYTES = 256 * 2**20
MAX_SIDE = 4096


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


def unpack_dataset(data: bytes, max_bytes: int = MAX_BYTES) -> Dataset:
    """The packed dataset; PackError when too large, of another schema, or with a broken picture."""
    if len(data) > max_bytes:
        raise PackError(f"the set has {len(data)} bytes, more than the {max_bytes} allowed")
    try:
        table = pq.read_table(io.BytesIO(data))
    except Exception as error:
        raise PackError(f"the set is not Parquet: {error}") from error
    version = (table.schema.metadata or {}).get(b"fedkd.schema")
    if version != SCHEMA_VERSION:
        raise PackError(f"the set has schema version {version!r}; this fedkd reads {SCHEMA_VERSION!r}")
    if not {"image", "caption", "label"} <= set(table.column_names):
        raise PackError(f"the set has columns {table.column_names}; it needs image, caption, label")
    rows: list[dict[str, object]] = []
    for index, row in enumerate(table.to_pylist()):
        try:
            opened = Image.open(io.BytesIO(row["image"]), formats=["PNG"])
            if max(opened.size) > MAX_SIDE:
                raise PackError(f"picture {index} of the set is {opened.size}; at most {MAX_SIDE} pixels a side")
            image = opened.convert("RGB")
        except PackError:
            raise
        except Exception as error:
            raise PackError(f"picture {index} of the set is broken: {error}") from error
        if not isinstance(row["caption"], str):
            raise PackError(f"caption {index} of the set is not text")
        rows.append(
            {
                "image": image,
                "caption": row["caption"],
                "label": -1 if row["label"] is None else int(row["label"]),
            }
        )
    return to_dataset(rows)
