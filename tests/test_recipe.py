"""Recipes: overrides, the nearest right name for a wrong one, identity, and the ones that ship."""

import re
from pathlib import Path

import pytest

from fedkd.recipe import (
    CHOICES,
    RANGES,
    RECIPES_DIR,
    Recipe,
    RecipeError,
    find_recipe,
    load_recipe,
    recipe_digest,
    recipe_names,
    registry_dir,
    run_dir,
    save_recipe,
    to_yaml,
)


@pytest.fixture
def plain(tmp_path) -> str:
    path = tmp_path / "plain.yaml"
    path.write_text("description: a small one\nfederation:\n  edges: 3\n  users: 6\n", encoding="utf-8")
    return str(path)


def test_a_file_changes_the_defaults_and_an_override_changes_the_file(plain):
    overrides = ["federation.users=9", "distillation.gamma=0.3", "prompts.taught=[seven,eight]"]
    recipe = load_recipe(plain, overrides)
    assert (recipe.federation.edges, recipe.federation.users) == (3, 9)
    assert recipe.distillation.gamma == 0.3
    assert recipe.prompts.taught == ["seven", "eight"]
    assert recipe.synthesis == Recipe().synthesis


@pytest.mark.parametrize(
    ("override", "named"),
    [
        ("distilation.gamma=0.3", "unknown key 'distilation'; did you mean 'distillation'?"),
        ("distillation.gama=0.3", "unknown key 'distillation.gama'; did you mean 'gamma'?"),
        ("finetune.lora.rnk=4", "unknown key 'finetune.lora.rnk'; did you mean 'rank'?"),
        ("finetune.zzzzzz=4", "unknown key 'finetune.zzzzzz'; known: batch_size"),
        ("distillation.weighting=trunkated_snr", "did you mean 'truncated_snr'?"),
        ("distillation.weighting=xyz", "allowed: 'uniform'"),
        ("run.dtype=float31", "did you mean 'float32'?"),
        ("distillation.gamma=1.5", "distillation.gamma=1.5 is out of range; give a value from 0 to 1"),
        ("serving.port=70000", "serving.port=70000 is out of range"),
        ("federation.users=1", "federation.users=1 is below federation.edges=3"),
        ("data.source=folder", "data.path is empty"),
        ("federation.quorums.finetun=0.9", "federation.quorums has 'finetun'; did you mean 'finetune'?"),
        ("federation.quorums.redistribute=1", "federation.quorums has 'redistribute'; did you mean 'describe'?"),
        ("federation.quorums.finetune=2", "federation.quorums.finetune=2.0 is out of range"),
        ("federation.deadlines_s.synthesize=9", "federation.deadlines_s has 'synthesize'; did you mean 'synthesise'?"),
        ("federation.deadlines_s.finetune=0", "federation.deadlines_s.finetune=0.0 is out of range"),
        ("trust.max_updat=2", "unknown key 'trust.max_updat'; did you mean 'max_update'?"),
        ("federation.rounds=many", "federation.rounds"),
        ("finetune.steps=1.5", "finetune.steps"),
        ("distillation.gamma=warm", "distillation.gamma"),
        ("federation=3", "'federation' must be a mapping"),
        ("run.seed", "override 'run.seed' has no '='"),
    ],
)
def test_a_wrong_override_is_named_with_its_fix(plain, override, named):
    with pytest.raises(RecipeError, match=re.escape(named)) as caught:
        load_recipe(plain, [override])
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("dotted", CHOICES)
def test_every_choice_is_enforced(plain, dotted):
    with pytest.raises(RecipeError, match=re.escape(dotted)):
        load_recipe(plain, [f"{dotted}=no-such-value"])


@pytest.mark.parametrize("dotted", RANGES)
def test_every_range_is_enforced(plain, dotted):
    with pytest.raises(RecipeError, match=re.escape(dotted)):
        load_recipe(plain, [f"{dotted}=-1"])


def test_a_recipe_that_does_not_exist_names_the_nearest():
    with pytest.raises(RecipeError, match="did you mean 'quickstart'"):
        find_recipe("quikstart")


def test_a_file_that_does_not_exist_is_named():
    with pytest.raises(RecipeError, match=r"no recipe file at 'nowhere.yaml'"):
        load_recipe("nowhere.yaml")


@pytest.mark.parametrize("text", ["federation: [1, 2", "- 1\n- 2\n", "just words", "federation:\n"])
def test_a_file_that_is_not_a_recipe_is_an_error_of_one_line(tmp_path, text):
    path = tmp_path / "odd.yaml"
    path.write_text(text, encoding="utf-8")
    with pytest.raises(RecipeError) as caught:
        load_recipe(str(path))
    assert "\n" not in str(caught.value)


def test_a_saved_recipe_is_the_same_recipe(plain, tmp_path):
    recipe = load_recipe(plain, ["run.seed=7", "data.path=/with spaces/and=signs"])
    saved = tmp_path / "run" / "recipe.yaml"
    save_recipe(recipe, saved)
    assert load_recipe(str(saved)) == recipe
    assert recipe_digest(load_recipe(str(saved))) == recipe_digest(recipe)
    assert [path.name for path in saved.parent.iterdir()] == ["recipe.yaml"]


def test_the_digest_follows_every_value(plain):
    assert recipe_digest(load_recipe(plain)) == recipe_digest(load_recipe(plain))
    assert recipe_digest(load_recipe(plain)) != recipe_digest(load_recipe(plain, ["run.seed=1"]))


def test_the_resolved_recipe_names_every_section(plain):
    text = to_yaml(load_recipe(plain))
    assert all(f"\n{section}:" in text for section in ("model", "data", "federation", "distillation", "run"))


def test_results_go_to_absolute_folders(plain, tmp_path):
    recipe = load_recipe(plain, [f"run.out={tmp_path}", "run.name=mine"])
    assert run_dir(recipe) == tmp_path / "mine"
    assert registry_dir(recipe) == tmp_path / "mine" / "registry"
    assert registry_dir(load_recipe(plain, [f"run.registry={tmp_path / 'r'}"])) == tmp_path / "r"


def test_the_quickstart_ships():
    assert {"quickstart", "tiny-sd"} <= set(recipe_names())


@pytest.mark.parametrize("path", sorted(RECIPES_DIR.glob("*.yaml")), ids=lambda path: path.stem)
def test_a_shipped_recipe_validates_and_opens_with_the_command_that_runs_it(path: Path):
    recipe = load_recipe(path.stem)
    verb = {"federation": "simulate", "distillation": "distill", "pretrain": "pretrain", "controlnet": "pretrain"}[
        recipe.kind
    ]
    assert path.read_text(encoding="utf-8").splitlines()[0] == f"# fedkd {verb} {path.stem}"
    assert recipe.description


def test_fewer_steps_than_progressive_has_phases_are_refused() -> None:
    with pytest.raises(RecipeError, match=r"distillation\.steps=5 .* 6 phases; give at least 6"):
        load_recipe("quickstart", ["distillation.method=progressive", "distillation.steps=5"])


@pytest.mark.parametrize("url", ["", "http://cloud:8766", "https://a.example/x", "s3://bucket/x", "file:///srv/a b"])
def test_a_place_that_nodes_pull_from_is_a_url(url):
    assert load_recipe("quickstart", [f"federation.registry_url='{url}'"]).federation.registry_url == url


@pytest.mark.parametrize("url", ["runs/registry", "/srv/registry", "hf:owner/name", "file://here", "http://", "s3:x"])
def test_a_place_that_nodes_cannot_pull_from_is_refused(url):
    with pytest.raises(RecipeError, match=r"federation\.registry_url=.* is no place that nodes can pull from; give"):
        load_recipe("quickstart", [f"federation.registry_url='{url}'"])
