"""What a recipe may say: choices, ranges, and sections that must agree."""

from __future__ import annotations

import difflib
import re

from omegaconf import OmegaConf

from fedkd.recipe.sections import Recipe


class RecipeError(ValueError):
    """A recipe, key or value that cannot be used; the message names the field, the value and the fix."""


CHOICES: dict[str, tuple[str, ...]] = {
    "kind": ("federation", "distillation", "pretrain", "controlnet"),
    "controlnet.condition": ("canny", "soft-edge", "depth", "seg"),
    "data.partition": ("pathological", "dirichlet", "iid"),
    "federation.sets_route": ("federation", "edge"),
    "synthesis.method": ("image_to_image", "text_to_image", "both"),
    "distillation.method": ("federated", "progressive", "adversarial", "consistency"),
    "distillation.student": ("lora", "full"),
    "distillation.form": ("same", "renoise"),
    "distillation.weighting": ("uniform", "alphas_cumprod", "snr", "truncated_snr", "min_snr"),
    "distillation.distance": ("mse", "huber", "ssim", "lpips"),
    "distillation.teachers": ("all", "sampled"),
    "distillation.teacher_weights": ("uniform", "size", "validation", "provenance", "confidence", "fixed"),
    "distillation.mixed_precision": ("no", "fp16", "bf16"),
    "distillation.progressive.teacher": ("previous", "edges"),
    "distillation.adversarial.features": ("unet", "dinov2"),
    "serving.forward": ("proxy", "redirect"),
    "run.tracker": ("", "tensorboard", "trackio", "wandb"),
    "run.dtype": ("float32", "float16", "bfloat16"),
}

RANGES: dict[str, tuple[float, float]] = {
    "distillation.gamma": (0.0, 1.0),
    "synthesis.strength": (0.01, 1.0),
    "synthesis.min_distance": (0.0, 1.0),
    "federation.quorum": (0.0, 1.0),
    "federation.phase_timeout_s": (0.1, 1e7),
    "federation.max_message_mb": (0.001, 1e5),
    "federation.wait_s": (0.0, 1e7),
    "federation.edges": (1, 10_000),
    "federation.users": (1, 1_000_000),
    "federation.rounds": (1, 100_000),
    "finetune.steps": (1, 10**9),
    "finetune.dp.epsilon": (0.0, 1e6),
    "finetune.dp.delta": (1e-12, 0.5),
    "finetune.dp.max_grad_norm": (1e-6, 1e6),
    "distillation.steps": (1, 10**9),
    "distillation.batch_size": (1, 10**6),
    "distillation.learning_rate": (1e-12, 1.0),
    "distillation.caption_dropout": (0.0, 1.0),
    "distillation.ema_decay": (0.0, 0.999999),
    "distillation.held_out": (0.0, 0.5),
    "distillation.outlier": (1.0, 1e9),
    "distillation.pictures": (1, 10**9),
    "distillation.gradient_accumulation_steps": (1, 10**6),
    "distillation.save_every": (1, 10**9),
    "distillation.sample_every": (0, 10**9),
    "distillation.adversarial.timesteps": (1, 1000),
    "distillation.adversarial.weight": (0.0, 1e6),
    "distillation.adversarial.r1": (0.0, 1e6),
    "distillation.consistency.solver_steps": (2, 1000),
    "distillation.consistency.target_decay": (0.0, 0.9999),
    "distillation.consistency.huber_c": (0.0, 1e3),
    "distillation.lora.rank": (1, 10**6),
    "controlnet.steps": (1, 10**9),
    "controlnet.batch_size": (1, 10**6),
    "controlnet.learning_rate": (1e-12, 1.0),
    "controlnet.caption_dropout": (0.0, 1.0),
    "controlnet.ema_decay": (0.0, 0.999999),
    "trust.max_pictures": (1, 10**9),
    "trust.max_update": (1e-6, 1e9),
    "trust.norm_outlier": (1.0, 1e9),
    "trust.cosine_outlier": (0.0, 1e9),
    "model.num_inference_steps": (1, 1000),
    "evaluation.num_inference_steps": (1, 1000),
    "synthesis.num_inference_steps": (1, 1000),
    "serving.port": (0, 65535),
    "serving.requests_per_minute": (0.0, 1e6),
    "serving.concurrent_requests": (0, 10**6),
    "serving.max_sessions": (1, 10**6),
    "serving.session_lifetime_s": (1.0, 1e6),
    "serving.max_waiting": (0, 10**6),
    "serving.max_rows": (0, 10**4),
    "serving.max_body_mb": (0.001, 1e5),
    "serving.refresh_s": (0.0, 1e6),
    "serving.cache_mb": (0.0, 1e9),
    "serving.on_demand_models": (1, 10**4),
    "serving.gossip_s": (0.01, 3600.0),
}

QUORUM_PHASES = ("describe", "refresh", "synthesise", "finetune")  # in which too few answers stop a run
ASKING_PHASES = (*QUORUM_PHASES, "redistribute")  # in which nodes are asked


def nearest(word: str, known: list[str] | tuple[str, ...]) -> str:
    """A hint that names the known word closest to `word`, or lists all of them."""
    begun = [name for name in known if word and name.startswith(word)]
    close = begun if len(begun) == 1 else difflib.get_close_matches(word, known, n=1, cutoff=0.5)
    return f"did you mean '{close[0]}'?" if close else f"known: {', '.join(sorted(known))}"


REGISTRY_URL = re.compile(r"(https?|s3)://[^/\s]\S*|file:///.+")


def check_registry_url(url: str, field: str = "federation.registry_url") -> str:
    """The URL as it is (empty: none); RecipeError that names `field` when nodes could not pull from it."""
    if url and not REGISTRY_URL.fullmatch(url):
        raise RecipeError(
            f"{field}={url!r} is no place that nodes can pull from; give http://HOST:PORT of `fedkd registry serve`, "
            "https://HOST, s3://BUCKET/PATH or file:///PATH"
        )
    return url


def check_values(recipe: Recipe) -> None:
    """Raise RecipeError that names the first field whose value is not allowed, and what is."""
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
    _check_phases("federation.quorums", recipe.federation.quorums, QUORUM_PHASES, (0.0, 1.0))
    _check_phases("federation.deadlines_s", recipe.federation.deadlines_s, ASKING_PHASES, (0.1, 1e7))
    _check_distillation(recipe)
    check_registry_url(recipe.federation.registry_url)
    if recipe.data.source == "folder" and not recipe.data.path:
        raise RecipeError("data.path is empty; data.source=folder needs data.path=/your/pictures")
    if recipe.federation.users < recipe.federation.edges:
        raise RecipeError(
            f"federation.users={recipe.federation.users} is below federation.edges={recipe.federation.edges}; "
            "each edge needs at least one user"
        )


def _check_phases(field: str, given: dict[str, float], phases: tuple[str, ...], allowed: tuple[float, float]) -> None:
    """Raise RecipeError for a phase that nobody is asked in, and for a value out of range."""
    low, high = allowed
    for phase, value in given.items():
        if phase not in phases:
            raise RecipeError(f"{field} has '{phase}'; {nearest(phase, phases)}")
        if not low <= value <= high:
            raise RecipeError(f"{field}.{phase}={value} is out of range; give a value from {low:g} to {high:g}")


def _check_distillation(recipe: Recipe) -> None:
    config, halving = recipe.distillation, recipe.distillation.progressive
    for key in ("start_steps", "end_steps"):
        value = getattr(halving, key)
        if value < 1 or value & (value - 1):
            below = 1 << max(0, value.bit_length() - 1)
            raise RecipeError(
                f"distillation.progressive.{key}={value} is no power of two, and steps are halved; "
                f"give {below} or {2 * below}"
            )
    if halving.end_steps >= halving.start_steps:
        raise RecipeError(
            f"distillation.progressive.end_steps={halving.end_steps} is not below start_steps={halving.start_steps}; "
            "give a smaller power of two"
        )
    halvings = halving.start_steps.bit_length() - halving.end_steps.bit_length()
    phases = halvings + (recipe.model.guidance_scale != 1.0)
    if config.method == "progressive" and config.steps < phases:
        raise RecipeError(
            f"distillation.steps={config.steps} is less than one step for each of progressive's {phases} phases; "
            f"give at least {phases}, better hundreds for each"
        )
    for place, teacher in enumerate(recipe.teachers):
        if not 0 <= teacher.weight <= 1:
            raise RecipeError(f"teachers[{place}].weight={teacher.weight} is out of range; lambda is from 0 to 1")
        if teacher.adapter and teacher.checkpoint:
            raise RecipeError(f"teachers[{place}] has an adapter and a checkpoint; give one of the two")
        known = recipe.prompts.known + recipe.prompts.taught
        for concept in teacher.concepts:
            if concept not in known:
                raise RecipeError(f"teachers[{place}].concepts has '{concept}'; {nearest(concept, known or ['none'])}")
    if recipe.teachers and config.teacher_weights == "fixed" and not sum(t.weight for t in recipe.teachers):
        raise RecipeError("teachers[].weight is 0 for every teacher; give at least one a weight above 0")
    if recipe.kind == "distillation" and not recipe.teachers:
        raise RecipeError(
            "teachers is empty; a distillation job needs at least one, e.g. teachers=[{checkpoint: tiny-sd}]"
        )
