"""A process that answers for many users loads their model once, and no user leaves a trace in it for the next."""

from __future__ import annotations

from pathlib import Path

from clients.pipelines import pipeline
from fedkd.data.packing import pack_dataset
from fedkd.data.partition import user_images
from fedkd.synthesis.synthesise import synthesise
from tests.server.conftest import small_recipe


def test_a_kept_pipeline_draws_the_same_for_each_user_whoever_came_before(tiny_folder: Path, tmp_path: Path) -> None:
    recipe = small_recipe(tiny_folder, tmp_path)
    pipe = pipeline("one", tiny_folder, recipe)
    before = {name: tensor.clone() for name, tensor in pipe.unet.state_dict().items()}

    def drawn(user: int) -> bytes:
        kept = pipeline("one", tiny_folder, recipe)
        assert kept is pipe
        return pack_dataset(synthesise(kept, user_images(recipe, user), recipe, seed=user)[0])

    first, other, again = drawn(0), drawn(1), drawn(0)
    assert first == again and first != other
    after = pipe.unet.state_dict()
    assert after.keys() == before.keys() and all(before[name].equal(after[name]) for name in before)
    assert pipeline("two", tiny_folder, recipe) is not pipe and pipeline("one", tiny_folder, recipe) is not pipe
