"""Typed recipes: what a run is, loaded from YAML, overridden on the command line, validated and saved."""

from __future__ import annotations

import dataclasses
import difflib
import hashlib
import os
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

RECIPES_DIR = Path(__file__).resolve().parent.parent / "recipes"


class RecipeError(ValueError):
    """A recipe, key or value that cannot be used; the message names the field, the value and the fix."""


@dataclass
class ModelConfig:
    """The Stable Diffusion model that the federation starts from."""

    path: str = "tiny-sd"  # a shipped name, a diffusers folder, or a hub id
    name: str = "tiny-sd"  # the name under which students are published
    resolution: int = 32  # pixels, both sides
    guidance_scale: float = 2.0
    num_inference_steps: int = 12
    scheduler: str = "DDIMScheduler"  # used for synthesis, evaluation and serving


@dataclass
class PromptsConfig:
    """A caption grammar: `template` filled from `slots`; `concept` names the slot that is learned."""

    template: str = ""
    slots: dict[str, list[str]] = field(default_factory=dict)
    concept: str = ""
    known: list[str] = field(default_factory=list)  # values of the concept slot that the base knows
    taught: list[str] = field(default_factory=list)  # values that the federation has to teach


@dataclass
class DataConfig:
    """The private captioned images of all users, before they are split over the users."""

    source: str = "digits"  # digits | folder | any datasets name or path
    path: str = ""  # for source=folder: pictures with captions (metadata.jsonl/csv or NAME.txt)
    split: str = "private"  # for digits: private | base | judge; else the datasets split
    concepts: list[str] = field(default_factory=list)  # for digits: keep only these; empty keeps all
    max_images: int = 0  # 0 keeps all
    partition: str = "pathological"  # pathological | dirichlet | iid
    classes_per_user: int = 1  # pathological
    dirichlet_alpha: float = 0.3  # dirichlet


@dataclass
class FederationConfig:
    """Who takes part, for how long, and how many failures a round survives."""

    edges: int = 2
    users: int = 4
    rounds: int = 2
    quorum: float = 0.5  # share of the nodes asked in a phase that must answer well
    phase_timeout_s: float = 600.0
    max_message_mb: float = 256.0


@dataclass
class SynthesisConfig:
    """How a user turns D_n into D'_n (EUCI Fig. 2 steps 1 and 2)."""

    method: str = "both"  # image_to_image | text_to_image | both
    strength: float = 0.5  # image_to_image: share of the noise schedule that is redone
    seeds_per_image: int = 2  # image_to_image
    samples: int = 100  # text_to_image: pictures drawn with the personal adapter
    personal_steps: int = 120  # text_to_image: LoRA steps on the private images
    num_inference_steps: int = 12
    guidance_scale: float = 2.0
    batch_size: int = 64
    min_distance: float = 0.05  # guard: RMS pixel distance (0..1) to the nearest private image
    max_redraws: int = 2


@dataclass
class LoraConfig:
    """PEFT LoRA on the UNet (or transformer)."""

    rank: int = 8
    alpha: int = 8
    target_modules: list[str] = field(
        default_factory=lambda: ["to_q", "to_k", "to_v", "to_out.0", "ff.net.0.proj", "ff.net.2"]
    )


@dataclass
class FinetuneConfig:
    """LoRA fine-tuning of the cached model on D_E^b at an edge."""

    steps: int = 200
    batch_size: int = 32
    learning_rate: float = 3e-3
    caption_dropout: float = 0.1
    lora: LoraConfig = field(default_factory=LoraConfig)


@dataclass
class DistillationConfig:
    """The cloud's student: L = (1-gamma) L_task + gamma L_distill (EUCI Eq. 7)."""

    method: str = "federated"
    gamma: float = 0.5
    steps: int = 300
    batch_size: int = 32
    learning_rate: float = 3e-3
    caption_dropout: float = 0.1
    form: str = "same"  # same: both models at one x_t | renoise: teacher sees the student's own prediction
    weighting: str = "truncated_snr"  # c(t): uniform | alphas_cumprod | snr | truncated_snr | min_snr
    min_snr_k: float = 5.0
    distance: str = "mse"  # d: mse | huber | ssim | lpips
    huber_delta: float = 0.1
    teachers: str = "all"  # all | sampled
    teacher_weights: str = "provenance"  # uniform | size | validation | provenance | confidence
    replay: int = 300  # pictures drawn by the base of what it knows, added to D_C
    lora: LoraConfig = field(default_factory=LoraConfig)


@dataclass
class EvaluationConfig:
    """How models are scored between phases."""

    classifier: str = "reference-classifier"  # a shipped name or a folder; empty: no prompt accuracy
    samples_per_concept: int = 24
    batch_size: int = 64
    num_inference_steps: int = 12
    max_known_drop: float = 0.05  # a student that loses more than this is only a candidate


@dataclass
class ServingConfig:
    """The edge's HTTP service and the split pictures that a simulation draws at its end."""

    host: str = "127.0.0.1"
    port: int = 0  # 0 takes a free one
    split_images: int = 4
    token: str = ""


@dataclass
class RunConfig:
    """Where and how the run is carried out."""

    name: str = "quickstart"
    out: str = "runs"
    registry: str = ""  # empty: RUN/registry
    seed: int = 0
    device: str = "cpu"
    dtype: str = "float32"
    threads: int = 1  # torch threads of every Flower client process


@dataclass
class PretrainConfig:
    """Training a small Stable Diffusion model from nothing (`fedkd pretrain`)."""

    vae_steps: int = 500
    vae_learning_rate: float = 2e-3
    vae_channels: list[int] = field(default_factory=lambda: [8, 16, 32])
    latent_channels: int = 4
    steps: int = 1800
    batch_size: int = 32
    learning_rate: float = 2e-3
    ema_decay: float = 0.998
    caption_dropout: float = 0.1
    unet_channels: list[int] = field(default_factory=lambda: [32, 64])
    unet_layers: int = 1
    attention_heads: int = 4
    norm_groups: int = 4
    text_width: int = 64
    text_layers: int = 2
    embedding_std: float = 1.0
    classifier_steps: int = 600
    copies: int = 8  # random colourings of each handwritten digit
    save_every: int = 100


@dataclass
class Recipe:
    """Everything that affects a result."""

    description: str = ""
    kind: str = "federation"  # federation | pretrain
    model: ModelConfig = field(default_factory=ModelConfig)
    prompts: PromptsConfig = field(default_factory=PromptsConfig)
    data: DataConfig = field(default_factory=DataConfig)
    federation: FederationConfig = field(default_factory=FederationConfig)
    synthesis: SynthesisConfig = field(default_factory=SynthesisConfig)
    finetune: FinetuneConfig = field(default_factory=FinetuneConfig)
    distillation: DistillationConfig = field(default_factory=DistillationConfig)
    evaluation: EvaluationConfig = field(default_factory=EvaluationConfig)
    serving: ServingConfig = field(default_factory=ServingConfig)
    pretrain: PretrainConfig = field(default_factory=PretrainConfig)
    run: RunConfig = field(default_factory=RunConfig)


CHOICES: dict[str, tuple[str, ...]] = {
    "kind": ("federation", "pretrain"),
    "data.partition": ("pathological", "dirichlet", "iid"),
    "synthesis.method": ("image_to_image", "text_to_image", "both"),
    "distillation.method": ("federated",),
    "distillation.form": ("same", "renoise"),
    "distillation.weighting": ("uniform", "alphas_cumprod", "snr", "truncated_snr", "min_snr"),
    "distillation.distance": ("mse", "huber", "ssim", "lpips"),
    "distillation.teachers": ("all", "sampled"),
    "distillation.teacher_weights": ("uniform", "size", "validation", "provenance", "confidence"),
    "run.dtype": ("float32", "float16", "bfloat16"),
}

RANGES: dict[str, tuple[float, float]] = {
    "distillation.gamma": (0.0, 1.0),
    "synthesis.strength": (0.01, 1.0),
    "synthesis.min_distance": (0.0, 1.0),
    "federation.quorum": (0.0, 1.0),
    "federation.edges": (1, 10_000),
    "federation.users": (1, 1_000_000),
    "federation.rounds": (1, 100_000),
    "finetune.steps": (1, 10**9),
    "distillation.steps": (1, 10**9),
    "model.num_inference_steps": (1, 1000),
    "evaluation.num_inference_steps": (1, 1000),
    "synthesis.num_inference_steps": (1, 1000),
    "serving.port": (0, 65535),
}


def nearest(word: str, known: list[str] | tuple[str, ...]) -> str:
    """A hint that names the known word closest to `word`, or lists all of them."""
    close = difflib.get_close_matches(word, known, n=1, cutoff=0.5)
    return f"did you mean '{close[0]}'?" if close else f"known: {', '.join(sorted(known))}"


def recipe_names() -> list[str]:
    """Names of the recipes that ship with fedkd."""
    return sorted(path.stem for path in RECIPES_DIR.glob("*.yaml"))


def find_recipe(name: str) -> Path:
    """The file of a shipped recipe's name, or of a path to a YAML file; RecipeError if there is none."""
    path = Path(name).expanduser()
    if path.suffix in {".yaml", ".yml"}:
        if path.is_file():
            return path
        raise RecipeError(f"no recipe file at '{name}'; give an existing YAML file or a name from `fedkd recipes ls`")
    shipped = RECIPES_DIR / f"{name}.yaml"
    if shipped.is_file():
        return shipped
    raise RecipeError(f"no recipe named '{name}'; {nearest(name, recipe_names())}")


def _check_keys(given: Any, schema: type, prefix: str = "") -> None:
    """Name the nearest right key for each key that the dataclass `schema` does not have."""
    if not isinstance(given, dict):
        raise RecipeError(f"'{prefix.rstrip('.') or 'the recipe'}' must be a mapping, not {given!r}")
    fields = {f.name: f for f in dataclasses.fields(schema)}
    for key, value in given.items():
        if key not in fields:
            hint = nearest(str(key), [prefix + name for name in fields] if "." in str(key) else list(fields))
            raise RecipeError(f"unknown key '{prefix}{key}'; {hint}")
        factory = fields[key].default_factory
        if isinstance(factory, type) and dataclasses.is_dataclass(factory):
            _check_keys(value, factory, f"{prefix}{key}.")


def _check_values(recipe: Recipe) -> None:
    config = OmegaConf.structured(recipe)
    for dotted, choices in CHOICES.items():
        value = OmegaConf.select(config, dotted)
        if value not in choices:
            shown = ", ".join(repr(choice) for choice in choices)
            raise RecipeError(f"{dotted}={value!r} is not allowed; {nearest(str(value), choices)} (allowed: {shown})")
    for dotted, (low, high) in RANGES.items():
        value = OmegaConf.select(config, dotted)
        if not low <= value <= high:
            raise RecipeError(f"{dotted}={value} is out of range; give a value from {low:g} to {high:g}")
    if recipe.data.source == "folder" and not recipe.data.path:
        raise RecipeError("data.path is empty; data.source=folder needs data.path=/your/pictures")
    if recipe.federation.users < recipe.federation.edges:
        raise RecipeError(
            f"federation.users={recipe.federation.users} is below federation.edges={recipe.federation.edges}; "
            "each edge needs at least one user"
        )


def _parse_overrides(overrides: list[str]) -> DictConfig:
    for item in overrides:
        if "=" not in item:
            raise RecipeError(f"override '{item}' has no '='; write it as section.key=value, e.g. run.seed=1")
    # `a.b=` means the empty text, which OmegaConf would read as null.
    quoted = [item + "''" if item.endswith("=") else item for item in overrides]
    try:
        return OmegaConf.from_dotlist(quoted)
    except Exception as error:
        raise RecipeError(f"cannot read the overrides {overrides}: {error}") from error


def load_recipe(name: str, overrides: list[str] | tuple[str, ...] = ()) -> Recipe:
    """Load a recipe by name or file, apply `a.b=c` overrides and validate it.

    Raises RecipeError that names the field, the value and the nearest right one.
    """
    path = find_recipe(name)
    try:
        raw = OmegaConf.load(path)
    except Exception as error:
        raise RecipeError(f"'{path}' is not readable YAML: {' '.join(str(error).split())}") from error
    if not isinstance(raw, DictConfig):
        raise RecipeError(f"'{path}' is a list; a recipe is a mapping of sections such as model: and data:")
    given = OmegaConf.merge(raw, _parse_overrides(list(overrides)))
    _check_keys(OmegaConf.to_container(given), Recipe)
    try:
        merged = OmegaConf.merge(OmegaConf.structured(Recipe), given)
        recipe = OmegaConf.to_object(merged)
    except OmegaConfBaseException as error:
        key = getattr(error, "full_key", None) or "recipe"
        raise RecipeError(f"{key}: {str(error).splitlines()[0]}") from error
    assert isinstance(recipe, Recipe)
    _check_values(recipe)
    return recipe


def to_yaml(recipe: Recipe) -> str:
    """The resolved recipe as YAML."""
    return OmegaConf.to_yaml(OmegaConf.structured(recipe))


def save_recipe(recipe: Recipe, path: Path) -> None:
    """Write the resolved recipe beside a result, atomically."""
    path.parent.mkdir(parents=True, exist_ok=True)
    part = path.with_name(path.name + ".part")
    part.write_text(to_yaml(recipe), encoding="utf-8")
    os.replace(part, path)


def recipe_digest(recipe: Recipe) -> str:
    """sha256 of the resolved recipe: what a manifest records as the recipe's identity."""
    return hashlib.sha256(to_yaml(recipe).encode()).hexdigest()


def run_dir(recipe: Recipe) -> Path:
    """The absolute folder that a run writes to: `run.out`/`run.name`."""
    return Path(recipe.run.out).expanduser().resolve() / recipe.run.name


def registry_dir(recipe: Recipe) -> Path:
    """The absolute folder of the checkpoint registry that the recipe names."""
    return Path(recipe.run.registry).expanduser().resolve() if recipe.run.registry else run_dir(recipe) / "registry"
