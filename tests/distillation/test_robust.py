"""Who is not believed: updates that are far too large or point away; and never an honest one."""

from __future__ import annotations

import itertools
import json
import random
from typing import Any

import pytest
import torch
from safetensors.torch import load, save

from fedkd.data.captions import prompts_for
from fedkd.data.sources import load_images
from fedkd.distillation.distil import distil
from fedkd.distillation.robust import cosine_outliers, norm_outliers, update_outliers
from fedkd.distillation.teachers import Teachers
from fedkd.distillation.weights import set_weights
from fedkd.models.adapter import file_metadata, load_adapter
from fedkd.models.pipeline import denoiser_of, load_pipeline
from fedkd.models.source import SHIPPED, resolve_model
from fedkd.models.updates import cosine, inner, largest_share, norm, update_of
from fedkd.recipe import load_recipe
from fedkd.recipe.sections import TrustConfig
from fedkd.training.examples import encode_examples
from fedkd.training.finetune import finetune
from fedkd.training.noise import NoiseSchedule
from tests.distillation.classroom import pictures, random_adapter, recipe

HONEST = {path.stem: path.read_bytes() for path in sorted((SHIPPED / "tiny-sd-edges").glob("*.safetensors"))}


def scaled(data: bytes, factor: float) -> bytes:
    """The adapter whose update is `factor` times that of `data`."""
    tensors = {key: value * (factor if ".lora_B." in key else 1.0) for key, value in load(data).items()}
    return save(tensors, metadata=file_metadata(data))


def test_norms_and_products_are_those_of_the_full_update(tiny_pipeline: Any) -> None:
    one, other = (random_adapter(denoiser_of(tiny_pipeline), seed) for seed in (0, 1))

    def full(data: bytes) -> torch.Tensor:
        tensors, lora = load(data), json.loads(file_metadata(data)["lora"])
        keys = sorted(key for key in tensors if ".lora_A." in key)
        products = [tensors[key.replace("lora_A", "lora_B")] @ tensors[key] for key in keys]
        return torch.cat([product.flatten() for product in products]).double() * lora["lora_alpha"] / lora["r"]

    assert norm(update_of(one)) == pytest.approx(float(full(one).norm()), rel=1e-5)
    assert inner(update_of(one), update_of(other)) == pytest.approx(float(full(one) @ full(other)), rel=1e-4)
    assert cosine(update_of(one), update_of(scaled(one, -3.0))) == pytest.approx(-1.0)
    share, layer = largest_share(update_of(one), denoiser_of(tiny_pipeline))
    weight = denoiser_of(tiny_pipeline).get_submodule(layer).weight
    assert share == pytest.approx(norm({layer: update_of(one)[layer]}) / float(weight.norm()), rel=1e-5)


def test_honest_adapters_on_disjoint_concepts_are_all_believed() -> None:
    assert len(HONEST) == 3
    assert update_outliers(HONEST, TrustConfig()) == {}
    found = {name: update_of(data) for name, data in HONEST.items()}
    assert all(abs(cosine(found[a], found[b])) < 0.3 for a, b in itertools.combinations(found, 2))  # they do differ


def test_an_adapter_that_undoes_the_others_or_shouts_them_down_is_not() -> None:
    adapters = {**HONEST, "against": scaled(HONEST["edge-0"], -1.0)}
    more = {**adapters, "again": HONEST["edge-1"]}
    assert list(update_outliers(more, TrustConfig())) == ["against"]
    loud = {**HONEST, "loud": scaled(HONEST["edge-0"], 5.0)}
    assert list(update_outliers(loud, TrustConfig())) == ["loud"]


def test_without_a_majority_nobody_is_accused() -> None:
    names = ["a", "b", "c", "d"]
    apart = {frozenset(pair): -0.4 for pair in itertools.combinations(names, 2)}
    assert cosine_outliers(names, apart, 0.25) == {}
    agreed = apart | {frozenset(pair): 0.4 for pair in itertools.combinations("abc", 2)}
    assert list(cosine_outliers(names, agreed, 0.25)) == ["d"]
    assert cosine_outliers(names[1:], agreed, 0.25) == {}  # three say nothing about a fourth part
    noise = {frozenset(pair): 0.004 for pair in itertools.combinations(names, 2)}
    noise |= {frozenset(("d", other)): -0.004 for other in "abc"}
    assert cosine_outliers(names, noise, 0.25) == {}
    assert norm_outliers({"a": 1.0, "b": 100.0}, 4.0) == {} and norm_outliers({"a": 1, "b": 1, "c": 9}, 4.0)


def test_one_who_is_not_believed_has_lambda_zero_and_keeps_its_pictures(tiny_pipeline: Any) -> None:
    adapters = {f"edge-{seed}": random_adapter(denoiser_of(tiny_pipeline), seed) for seed in (0, 1)}
    sets = {f"edge-{seed}": pictures(seed) for seed in (0, 1)}
    done = distil(tiny_pipeline, sets, adapters, recipe("steps=1"), seed=0, distrusted={"edge-1": "its update is odd"})
    assert done.left_out == {"edge-1": "its update is odd"} and done.teacher_weights == {"edge-0": 1.0, "edge-1": 0.0}


def test_an_adapter_trained_on_random_labels_has_lambda_zero_by_its_validation_loss() -> None:
    torch.set_num_threads(1)
    quickstart = load_recipe(
        "quickstart", ["finetune.steps=15", "finetune.batch_size=8", "finetune.learning_rate=0.01"]
    )
    pipe = load_pipeline(resolve_model("tiny-sd"), scheduler=quickstart.model.scheduler)
    sevens = load_images(quickstart).filter(lambda row: row["label"] == 7).select(range(12))
    words, chance = quickstart.prompts, random.Random(0)
    wrong = [prompts_for(words, chance.choice(words.known + words.taught), 1, seed)[0] for seed in range(12)]
    mislabelled = sevens.remove_columns("caption").add_column("caption", wrong)
    spoilt = finetune(pipe, mislabelled, quickstart.finetune, seed=0)[0]
    denoiser = denoiser_of(pipe)
    for name, data in (("edge-0", HONEST["edge-0"]), ("spoilt", spoilt)):
        load_adapter(denoiser, data, name)
    teachers = Teachers(denoiser, ["edge-0", "spoilt"], NoiseSchedule.of(pipe.scheduler, pipe.device))
    examples = encode_examples(pipe, sevens, 32)
    source, held_out = torch.tensor([0, 1] * 6), torch.arange(12)
    left_out = set_weights(teachers, quickstart.distillation, examples, source, held_out=held_out, seed=0)
    assert list(left_out) == ["spoilt"] and "times the base's (limit 1.25)" in left_out["spoilt"]
    assert teachers.mean_weights() == {"edge-0": 1.0, "spoilt": 0.0}
