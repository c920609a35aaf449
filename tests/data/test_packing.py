"""Captioned images survive the trip as bytes, and bad bytes are refused."""

import io
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from datasets import concatenate_datasets
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from fedkd.data.packing import PackError, gather, pack_dataset, unpack_dataset
from fedkd.data.sources import to_dataset


def picture(seed: int, side: int = 8) -> Image.Image:
    return Image.fromarray(np.random.default_rng(seed).integers(0, 256, (side, side, 3), dtype=np.uint8))


@settings(max_examples=20, deadline=None)
@given(st.lists(st.tuples(st.integers(0, 99), st.text(max_size=20)), min_size=1, max_size=4))
def test_pictures_and_captions_arrive_as_they_were(rows: list[tuple[int, str]]) -> None:
    sent = to_dataset([{"image": picture(seed), "caption": text, "label": seed} for seed, text in rows])
    received = unpack_dataset(pack_dataset(sent))
    assert list(received["caption"]) == [text for _, text in rows]
    assert list(received["label"]) == [seed for seed, _ in rows]
    for image, (seed, _) in zip(received["image"], rows, strict=True):
        assert np.array_equal(np.asarray(image), np.asarray(picture(seed)))


def test_packing_is_deterministic() -> None:
    dataset = to_dataset([{"image": picture(0), "caption": "a"}])
    assert pack_dataset(dataset) == pack_dataset(dataset)


def parquet(**columns: object) -> bytes:
    out = io.BytesIO()
    pq.write_table(pa.table(columns).replace_schema_metadata({b"fedkd.schema": b"1"}), out)
    return out.getvalue()


@pytest.mark.parametrize(
    ("data", "reason"),
    [
        (b"garbage", "not Parquet"),
        (parquet(image=[b"no picture"], caption=["a"], label=[0]), "picture 0"),
        (parquet(caption=["a"]), "columns"),
    ],
)
def test_malformed_bytes_are_refused_with_a_reason(data: bytes, reason: str) -> None:
    with pytest.raises(PackError, match=reason):
        unpack_dataset(data)


def test_a_small_file_that_stands_for_many_or_large_pictures_is_refused() -> None:
    row = pack_dataset(to_dataset([{"image": picture(0), "caption": "a"}]))
    once = pa.DictionaryArray.from_arrays(np.zeros(20_000, np.int32), pa.array([b"\0" * 2**16], pa.binary()))
    bomb = parquet(image=once, caption=["a"] * 20_000, label=[0] * 20_000)
    assert len(bomb) < 2**17  # and 1.2 GiB when each picture is written out
    with pytest.raises(PackError, match="20000 pictures, more than the 10000 allowed"):
        unpack_dataset(bomb, max_pictures=10_000)
    with pytest.raises(PackError, match="picture 0 of the set is broken"):
        unpack_dataset(bomb)
    with pytest.raises(PackError, match=r"picture 0 .* has to be 16 pixels wide and high"):
        unpack_dataset(row, side=16)
    assert len(unpack_dataset(row, side=8, max_pictures=1)) == 1
    with pytest.raises(PackError, match="caption 0 of the set has 20000 characters"):
        unpack_dataset(pack_dataset(to_dataset([{"image": picture(0), "caption": "a" * 20_000}])))


def test_a_set_over_the_size_limit_is_refused() -> None:
    with pytest.raises(PackError, match="more than the 10 allowed"):
        unpack_dataset(pack_dataset(to_dataset([{"image": picture(0), "caption": "a"}])), max_bytes=10)


def test_many_sets_gathered_on_disk_are_the_sets_one_after_another(tmp_path: Path) -> None:
    sets = [pack_dataset(to_dataset([{"image": picture(i), "caption": str(i), "label": i}])) for i in range(3)]
    gathered = gather(iter(sets), tmp_path / "sub" / "sets.arrow")
    together = concatenate_datasets([unpack_dataset(data) for data in sets])
    assert gathered.features == together.features and gathered.cache_files
    for ours, theirs in zip(gathered, together, strict=True):
        assert ours["image"].tobytes() == theirs["image"].tobytes()
        assert (ours["caption"], ours["label"]) == (theirs["caption"], theirs["label"])
    with pytest.raises(PackError, match="not Parquet"):
        gather([*sets, b"broken"], tmp_path / "sets.arrow")
