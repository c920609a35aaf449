"""Where captioned images come from: the embedded digits, a folder of one's own, or any datasets name."""

from __future__ import annotations

import csv
import json
from pathlib import Path

from datasets import Dataset, Features, Image, Value, load_dataset
from PIL import Image as PILImage

from fedkd.data.digits import DIGITS, SPLITS, coloured_digits
from fedkd.recipe import Recipe

PICTURES = {".png", ".jpg", ".jpeg", ".webp", ".bmp"}
FEATURES = Features({"image": Image(), "caption": Value("string"), "label": Value("int64")})


class DataError(ValueError):
    """Captioned images that cannot be used; the message names the place and the fix."""


def to_dataset(rows: list[dict[str, object]]) -> Dataset:
    """Rows of `image` (PIL), `caption` and optional `label` (-1 when unknown) as a datasets.Dataset."""
    full = [{"label": -1, **row} for row in rows]
    return Dataset.from_list(full, features=FEATURES)


def _captions(folder: Path) -> dict[str, str]:
    """Captions by file name, from metadata.jsonl, metadata.csv, captions.csv or NAME.txt beside a picture."""
    captions: dict[str, str] = {}
    for picture in folder.rglob("*"):
        if picture.suffix.lower() in PICTURES and picture.with_suffix(".txt").is_file():
            captions[str(picture.relative_to(folder))] = picture.with_suffix(".txt").read_text("utf-8").strip()
    for name in ("metadata.csv", "captions.csv", "metadata.jsonl"):
        file = folder / name
        if not file.is_file():
            continue
        lines = file.read_text("utf-8").splitlines()
        try:
            records = (
                [json.loads(line) for line in lines if line.strip()]
                if name.endswith("jsonl")
                else list(csv.DictReader(lines))
            )
        except ValueError as error:
            raise DataError(f"{file} cannot be read: {error}; give one record a line") from error
        for record in records:
            key = record.get("file_name") or record.get("image")
            text = record.get("caption") or record.get("text")
            if key and text:
                captions[str(key)] = str(text).strip()
    return captions


def load_folder(path: str, resolution: int) -> tuple[Dataset, list[str]]:
    """Captioned pictures of a folder (square, `resolution` pixels), and what was skipped with the reason.

    Captions come from `metadata.jsonl`/`metadata.csv` (`file_name`, `caption` or `text`) or `NAME.txt`.
    Raises DataError when the folder is missing or not one usable picture is left.
    """
    folder = Path(path).expanduser()
    if not folder.is_dir():
        raise DataError(f"data.path={path} is not a folder; give a folder with pictures and captions")
    captions = _captions(folder)
    rows: list[dict[str, object]] = []
    skipped: list[str] = []
    for picture in sorted(p for p in folder.rglob("*") if p.suffix.lower() in PICTURES):
        name = str(picture.relative_to(folder))
        caption = captions.get(name) or captions.get(picture.name)
        if not caption:
            skipped.append(f"{name}: no caption")
            continue
        try:
            with PILImage.open(picture) as opened:
                image = opened.convert("RGB")
        except (OSError, ValueError, PILImage.DecompressionBombError) as error:
            skipped.append(f"{name}: broken picture ({type(error).__name__})")
            continue
        side = min(image.size)
        left, top = (image.width - side) // 2, (image.height - side) // 2
        square = image.crop((left, top, left + side, top + side))
        rows.append(
            {
                "image": square.resize((resolution, resolution), PILImage.Resampling.LANCZOS),
                "caption": caption,
            }
        )
    if not rows:
        seen = f"{len(skipped)} pictures, all skipped (first: {skipped[0]})" if skipped else "no pictures"
        raise DataError(
            f"data.path={path} has {seen}; put a caption in metadata.jsonl "
            '({"file_name": "a.png", "caption": "…"}) or in a.txt beside a.png'
        )
    return to_dataset(rows), skipped


def load_images(recipe: Recipe) -> Dataset:
    """All private captioned images of a recipe: columns `image` (PIL RGB), `caption`, `label` (-1 unknown)."""
    data, resolution = recipe.data, recipe.model.resolution
    if data.source == "digits":
        if data.split not in SPLITS:
            raise DataError(f"data.split={data.split!r} is not known; give one of {', '.join(SPLITS)}")
        dataset = to_dataset(coloured_digits(data.split, resolution, recipe.run.seed))
        if data.concepts:
            wanted = {DIGITS.index(name) for name in data.concepts if name in DIGITS}
            dataset = dataset.filter(lambda label: label in wanted, input_columns="label")
    elif data.source == "folder":
        dataset, _ = load_folder(data.path, resolution)
    else:
        dataset = _from_hub(recipe)
    if data.max_images:
        dataset = dataset.select(range(min(data.max_images, len(dataset))))
    if not len(dataset):
        raise DataError(f"data.concepts={data.concepts} leaves no image of data.source={data.source}")
    return dataset


def _from_hub(recipe: Recipe) -> Dataset:
    source, resolution = recipe.data.source, recipe.model.resolution
    try:
        loaded = load_dataset(source, split=recipe.data.split)
    except Exception as error:
        reason = (str(error).splitlines() or [type(error).__name__])[0]
        raise DataError(f"data.source={source} cannot be loaded: {reason}") from error
    columns = set(loaded.column_names)
    caption = next((name for name in ("caption", "text", "prompt") if name in columns), None)
    if "image" not in columns or caption is None:
        raise DataError(
            f"data.source={source} has columns {sorted(columns)}; it needs 'image' and 'caption' (or 'text')"
        )
    rows: list[dict[str, object]] = [
        {"image": row["image"].convert("RGB").resize((resolution, resolution)), "caption": row[caption]}
        for row in loaded
    ]
    return to_dataset(rows)
