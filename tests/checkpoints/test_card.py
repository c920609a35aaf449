"""The model card: a head that the hub reads, and for people the scores, pictures, use and lineage."""

from __future__ import annotations

from huggingface_hub import ModelCard

from fedkd.checkpoints.card import LORA, model_card
from fedkd.checkpoints.manifest import FileEntry, Manifest

FILES = (FileEntry("model_index.json", "a" * 64, 10), FileEntry("unet/w.safetensors", "b" * 64, 990))


def manifest(**facts: object) -> Manifest:
    known = {
        "parents": ("digits:v0",),
        "round": 3,
        "metrics": {"known": 0.75, "concepts": {"seven": 0.5}, "note": "text", "ok": True},
        "licence": "Apache-2.0",
        "base_model": "owner/base",
        "edges": ("edge-0", "edge-1"),
        "recipe_digest": "c" * 64,
    }
    return Manifest("digits", "v1", FILES, **(known | facts))  # type: ignore[arg-type]


def test_the_hub_reads_library_base_licence_tags_and_scores() -> None:
    data = ModelCard(model_card(manifest())).data
    assert (data.library_name, data.pipeline_tag) == ("diffusers", "text-to-image")
    assert (data.base_model, data.license) == ("owner/base", "apache-2.0")
    assert {"fedkd", "federated-learning", "distillation"} <= set(data.tags) and "lora" not in data.tags
    assert [(each.metric_type, each.metric_value) for each in data.eval_results] == [("known", 0.75)]


def test_a_person_reads_lineage_scores_pictures_and_use() -> None:
    card = model_card(manifest(), repository="me/digits", samples=["samples/student-seven.png"])
    for part in (
        "# digits v1",
        "round 3 of a federated distillation, taught by edge-0, edge-1",
        "![student seven](samples/student-seven.png)",
        'DiffusionPipeline.from_pretrained("me/digits")',
        "| known | 0.75 |",
        "| concepts: seven | 0.5 |",
        "| Parents | digits:v0 |",
        "| Size | 1000 bytes in 2 files |",
    ):
        assert part in card


def test_a_few_step_student_says_how_it_is_drawn() -> None:
    sampling = {"scheduler": "LCMScheduler", "num_inference_steps": 2, "guidance_scale": 1.0}
    card = model_card(manifest(sampling=sampling))
    assert "few-step" in ModelCard(card).data.tags and "num_inference_steps=2, guidance_scale=1.0" in card


def test_a_lora_says_how_it_is_loaded() -> None:
    files = (*FILES, FileEntry(LORA, "d" * 64, 5))
    card = model_card(Manifest("digits", "v1", files, base_model="owner/base"), repository="me/digits")
    assert "lora" in ModelCard(card).data.tags and 'load_lora_weights("me/digits")' in card


def test_what_is_not_known_is_left_out() -> None:
    data = ModelCard(model_card(Manifest("digits", "v0", FILES))).data
    assert data.license is None and data.base_model is None and not data.eval_results


def test_an_own_licence_is_named_as_the_hub_wants_it() -> None:
    data = ModelCard(model_card(manifest(licence="My Licence (2)", base_model="./folder"))).data
    assert (data.license, data.license_name, data.base_model) == ("other", "my-licence-2", None)
