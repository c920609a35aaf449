"""Where captioned images come from: the embedded digits, a folder of one's own, or any datasets name."""

from __future__ import annotations

import csv
import json
from pathlib import Path

from datasets import Dataset, Features, Image, Value, disable_progress_bars, load_dataset
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
    if not full:
        return Dataset.from_dict({name: [] for name in FEATURES}, features=FEATURES)
    return Dataset.from_list(full, features=FEATURES)


def _captions(folder: Path, column: str) -> dict[str, str]:
    """Captions by file name, from metadata.jsonl, metadata.csv, captions.csv or NAME.txt beside a picture."""
    captions: dict[str, str] = {}
    columns: dict[str, list[str]] = {}
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
            text = next((record[name] for name in caption_columns(column) if record.get(name)), None)
            if key and text:
                captions[str(key)] = str(text).strip()
        if records:
            columns[name] = sorted(str(key) for key in records[0])
    if columns and not captions:
        name, found = next(iter(columns.items()))
        raise DataError(
            f"data.caption_column={column}: {folder / name} has columns {found}; "
            f"name the one with the text, e.g. data.caption_column={_likely(found)}"
        )
    return captions


def caption_columns(column: str) -> tuple[str, ...]:
    """Where captions are looked for: in `column`, and under the usual names when it is the default."""
    return (column, "text", "prompt") if column == "caption" else (column,)


def _likely(columns: list[str]) -> str:
    return next((name for name in columns if name not in ("image", "file_name", "label")), "text")


def load_folder(path: str, resolution: int, caption_column: str = "caption") -> tuple[Dataset, list[str]]:
    """Captioned pictures of a folder (square, `resolution` pixels), and what was skipped with the reason.

    Captions come from `metadata.jsonl`/`metadata.csv` (`file_name`, `caption` or `text`) or `NAME.txt`.
    Raises DataError when the folder is missing or not one usable picture is left.
    """
    folder = Path(path).expanduser()
    if not folder.is_dir():
        raise DataError(f"data.path={path} is not a folder; give a folder with pictures and captions")
    captions = _captions(folder, caption_column)
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
        dataset, _ = load_folder(data.path, resolution, data.caption_column)
    else:
        dataset = _from_hub(recipe)
    if data.max_images:
        dataset = dataset.select(range(min(data.max_images, len(dataset))))
    if not len(dataset):
        raise DataError(f"data.concepts={data.concepts} leaves no image of data.source={data.source}")
    return dataset


def _from_hub(recipe: Recipe) -> Dataset:
    source, resolution = recipe.data.source, recipe.model.resolution
    disable_progress_bars()  # they interleave with the command's own
    try:
        loaded = load_dataset(source, split=recipe.data.split)
    except Exception as error:
        reason = (str(error).splitlines() or [type(error).__name__])[0]
        raise DataError(f"data.source={source} cannot be loaded: {reason}") from error
    names, wanted = list(loaded.column_names), caption_columns(recipe.data.caption_column)
    caption, image = next((name for name in wanted if name in names), None), recipe.data.image_column
    if caption is None:
        raise DataError(
            f"data.caption_column={recipe.data.caption_column}: data.source={source} has columns {sorted(names)}; "
            f"name the one with the text, e.g. data.caption_column={_likely(sorted(names))}"
        )
    if image not in names:
        raise DataError(
            f"data.image_column={image}: data.source={source} has columns {sorted(names)}; "
            "name the one with the pictures"
        )
    if recipe.data.max_images:
        loaded = loaded.select(range(min(recipe.data.max_images, len(loaded))))
    try:
        rows: list[dict[str, object]] = [
            {"image": row[image].convert("RGB").resize((resolution, resolution)), "caption": str(row[caption])}
            for row in loaded.cast_column(image, Image())
        ]
    except (AttributeError, OSError, TypeError, ValueError) as error:
        reason = (str(error).splitlines() or [type(error).__name__])[0]
        raise DataError(f"data.image_column={image} of data.source={source} holds no pictures: {reason}") from error
    return to_dataset(rows)
