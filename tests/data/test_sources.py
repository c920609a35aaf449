"""Pictures come from digits and folders; broken ones are named, skipped and counted."""

import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from fedkd.data.captions import prompts_for, slots_of
from fedkd.data.digits import SPLITS, coloured_digits, handwriting
from fedkd.data.partition import edge_of, partition
from fedkd.data.sources import DataError, load_folder, load_images
from fedkd.recipe import load_recipe


def test_splits_of_the_handwriting_are_disjoint() -> None:
    seen = [{strokes.tobytes() for strokes in handwriting(split)[0]} for split in SPLITS]
    for i, one in enumerate(seen):
        for other in seen[i + 1 :]:
            assert not one & other


def test_a_digit_is_drawn_in_the_colours_of_its_caption() -> None:
    row = coloured_digits("private", 32, seed=0)[0]
    slots = slots_of(load_recipe("quickstart").prompts, str(row["caption"]))
    assert slots is not None
    assert slots["ink"] != slots["background"]
    corner = np.asarray(row["image"])[0, 0].astype(int)
    from fedkd.data.digits import COLOURS

    assert np.abs(corner - COLOURS[slots["background"]]).max() < 12


def test_the_quickstart_shows_users_taught_concepts_only_and_shares_are_disjoint() -> None:
    recipe = load_recipe("quickstart")
    images = load_images(recipe)
    assert set(images["label"]) == {7, 8, 9}
    shares = partition(images, recipe)
    assert sum(len(share) for share in shares) == len(images)
    assert all(len(set(share["label"])) == 1 for share in shares)
    assert [edge_of(user, recipe) for user in range(4)] == [0, 0, 1, 1]


@pytest.mark.parametrize("kind", ["iid", "dirichlet", "pathological"])
def test_every_partition_is_reproducible(kind: str) -> None:
    recipe = load_recipe("quickstart", [f"data.partition={kind}"])
    images = load_images(recipe)
    first, second = partition(images, recipe), partition(images, recipe)
    assert [list(share["caption"]) for share in first] == [list(share["caption"]) for share in second]


def test_more_users_than_pictures_is_an_error_with_a_fix() -> None:
    recipe = load_recipe("quickstart", ["data.max_images=3"])
    with pytest.raises(DataError, match=r"too few for federation.users=4"):
        partition(load_images(recipe), recipe)


def folder_of(path: Path, names: dict[str, str | None]) -> Path:
    path.mkdir()
    lines = []
    for name, caption in names.items():
        if name.startswith("broken"):
            (path / name).write_bytes(b"not a picture")
        else:
            Image.new("RGB", (40, 20), "red").save(path / name)
        if caption:
            lines.append(json.dumps({"file_name": name, "caption": caption}))
    (path / "metadata.jsonl").write_text("\n".join(lines))
    return path


def test_a_folder_keeps_good_pictures_and_names_the_others(tmp_path: Path) -> None:
    path = folder_of(tmp_path / "own", {"a.png": "a cat", "b.png": None, "broken.png": "a dog"})
    (path / "b.txt").write_text("a bird")
    (path / "c.png").write_bytes((path / "a.png").read_bytes())
    dataset, skipped = load_folder(str(path), 32)
    assert list(dataset["caption"]) == ["a cat", "a bird"]
    assert dataset[0]["image"].size == (32, 32)
    assert [line.split(":")[0] for line in skipped] == ["broken.png", "c.png"]


def test_a_folder_of_only_broken_pictures_is_an_error(tmp_path: Path) -> None:
    path = folder_of(tmp_path / "own", {"broken1.png": "x", "broken2.png": "y"})
    with pytest.raises(DataError, match="2 pictures, all skipped"):
        load_folder(str(path), 32)


def test_prompts_follow_the_template_and_never_paint_ink_on_ink() -> None:
    prompts = load_recipe("quickstart").prompts
    for caption in prompts_for(prompts, "seven", 50, seed=3):
        slots = slots_of(prompts, caption)
        assert slots is not None and slots["digit"] == "seven" and slots["ink"] != slots["background"]


def test_a_concept_that_would_go_to_nobody_is_an_error_with_a_fix() -> None:
    recipe = load_recipe("quickstart", ["data.concepts=[]"])
    with pytest.raises(DataError, match="covers 4 of 10 concepts; give at least 7"):
        partition(load_images(recipe), recipe)


def test_every_picture_of_ones_own_folder_goes_to_some_user(tmp_path: Path) -> None:
    path = folder_of(tmp_path / "own", {f"{i}.png": f"picture number {i}" for i in range(9)})
    recipe = load_recipe("quickstart", ["data.source=folder", f"data.path={path}"])
    shares = partition(load_images(recipe), recipe)
    assert sorted(text for share in shares for text in share["caption"]) == [f"picture number {i}" for i in range(9)]


def test_enough_classes_per_user_cover_every_concept() -> None:
    recipe = load_recipe("quickstart", ["data.concepts=[]", "data.classes_per_user=7"])
    shares = partition(load_images(recipe), recipe)
    assert set().union(*(set(share["label"]) for share in shares)) == set(range(10))


def test_own_pictures_of_more_concepts_than_users_hold_are_all_given_out(tmp_path: Path) -> None:
    path = folder_of(tmp_path / "own", {f"{d}.png": f"a red {d} on a blue background" for d in ("one", "two", "six")})
    recipe = load_recipe(
        "quickstart", ["data.source=folder", f"data.path={path}", "federation.users=2", "federation.edges=1"]
    )
    shares = partition(load_images(recipe), recipe)
    assert sum(len(share) for share in shares) == 3


def test_a_dataset_s_own_column_names_are_asked_for_and_used(tmp_path: Path) -> None:
    from datasets import Dataset, Features, Value
    from datasets import Image as ImageFeature

    features = Features({"photo": ImageFeature(), "words": Value("string")})
    rows = [{"photo": Image.new("RGB", (40, 40), "red"), "words": "a red square"}] * 3
    Dataset.from_list(rows, features=features).to_parquet(tmp_path / "train.parquet")
    source = [f"data.source={tmp_path}", "data.split=train", "data.concepts=[]"]
    with pytest.raises(DataError, match=r"data.caption_column=caption: .*\['photo', 'words'\]"):
        load_images(load_recipe("quickstart", source))
    with pytest.raises(DataError, match=r"data.image_column=image: .*\['photo', 'words'\]"):
        load_images(load_recipe("quickstart", [*source, "data.caption_column=words"]))
    named = ["data.caption_column=words", "data.image_column=photo", "data.max_images=2"]
    images = load_images(load_recipe("quickstart", [*source, *named]))
    assert len(images) == 2 and images[0]["caption"] == "a red square" and images[0]["image"].size == (32, 32)
