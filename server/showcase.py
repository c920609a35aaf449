"""What a finished run shows: pictures before and after, and pictures served together by edge and device."""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from fedkd.data.captions import prompts_for
from fedkd.models.flops import model_cost
from fedkd.models.pipeline import load_pipeline
from fedkd.models.sampling import sample
from fedkd.planning.system import EUCI_DEVICE, EUCI_EDGE, EUCI_LINK, ModelCost, cost
from fedkd.recipe import Recipe, with_sampling
from fedkd.serving.device import EdgeClient
from fedkd.serving.loopback import serve_in_process
from server.state import seed_of

SCHEDULERS = (
    "DDIMScheduler",
    "EulerDiscreteScheduler",
    "DPMSolverMultistepScheduler",
    "EulerAncestralDiscreteScheduler",
)
ORDERS: tuple[Literal["device_first", "edge_first"], ...] = ("device_first", "edge_first")
Progress = Callable[[int, int], None]


@dataclass(frozen=True)
class Plan:
    """One split picture to draw."""

    prompt: str
    scheduler: str
    order: Literal["device_first", "edge_first"]
    device_steps: int
    seed: int


def plans(recipe: Recipe, schedulers: tuple[str, ...] = SCHEDULERS) -> list[Plan]:
    """The split pictures of a run: schedulers and orders in turn, split points spread over the steps."""
    count, steps = recipe.serving.split_images, recipe.model.num_inference_steps
    prompts = example_prompts(recipe, count)
    made = []
    for index in range(count):
        order = ORDERS[index % 2]
        place = index // 2 + index if count >= 8 else index
        scheduler = schedulers[place % len(schedulers)]
        device_steps = max(1, min(steps - 1, round(steps * (index + 1) / (count + 1)))) if steps > 1 else 1
        seed = seed_of(recipe.run.seed, "split", index)
        made.append(Plan(prompts[index], scheduler, order, device_steps, seed))
    return made


def example_prompts(recipe: Recipe, count: int) -> list[str]:
    """`count` prompts, taught concepts first; the recipe's description stands in where it has no prompts."""
    concepts = [*recipe.prompts.taught, *recipe.prompts.known]
    if not concepts:
        return [recipe.description or "a picture"] * count
    seed = seed_of(recipe.run.seed, "split prompts")
    chosen = [concepts[index % len(concepts)] for index in range(count)]
    return [prompts_for(recipe.prompts, concept, 1, seed + index)[0] for index, concept in enumerate(chosen)]


def unsplit_latents(checkpoint: str, recipe: Recipe, plan: Plan) -> Any:
    """Final latents (1, C, h, w) of the plain diffusers pipeline for the same prompt, scheduler and seed."""
    import torch

    run = recipe.run
    pipe: Any = load_pipeline(checkpoint, device=run.device, dtype=run.dtype, scheduler=plan.scheduler)
    return pipe(
        plan.prompt,
        num_inference_steps=recipe.model.num_inference_steps,
        guidance_scale=recipe.model.guidance_scale,
        height=recipe.model.resolution,
        width=recipe.model.resolution,
        generator=torch.Generator("cpu").manual_seed(plan.seed),
        output_type="latent",
    ).images.cpu()


def split_pictures(
    checkpoint: str,
    recipe: Recipe,
    run: Path,
    progress: Progress | None = None,
    *,
    sampling: dict[str, Any] | None = None,
) -> dict[str, Any]:
    """Serve `checkpoint` from an edge on loopback, draw the plans, compare with the unsplit pipeline.

    `sampling` is the manifest's: a few-step student is drawn with its own scheduler and steps.
    Returns the report's `split`: every picture with who did which steps, bytes, seconds, delay and joules by
    the cost model, and whether its final latents are bit for bit those of the unsplit pipeline.
    """
    import torch

    torch.set_num_threads(recipe.run.threads)
    os.environ["OMP_NUM_THREADS"] = str(recipe.run.threads)
    recipe = with_sampling(recipe, sampling or {})
    made = plans(recipe, (sampling["scheduler"],) if sampling else SCHEDULERS)
    steps, guidance = recipe.model.num_inference_steps, recipe.model.guidance_scale
    expected = [unsplit_latents(checkpoint, recipe, plan) for plan in made]
    sizes = ModelCost(**model_cost(load_pipeline(checkpoint), recipe.model.resolution))
    (run / "pictures").mkdir(parents=True, exist_ok=True)
    images = []
    edge: dict[str, Any] = {
        "device": recipe.run.device,
        "dtype": recipe.run.dtype,
        "token": recipe.serving.token,
    }
    mine: dict[str, Any] = {
        "device": recipe.run.device,
        "dtype": recipe.run.dtype,
        "token": recipe.serving.token,
    }
    with (
        serve_in_process(checkpoint, name=recipe.model.name, **edge) as url,
        EdgeClient(url, cache_dir=run / "nodes" / "device-0" / "cache", **mine) as device,
    ):
        for index, (plan, latents) in enumerate(zip(made, expected, strict=True)):
            result = device.generate(
                plan.prompt,
                num_inference_steps=steps,
                device_steps=plan.device_steps,
                order=plan.order,
                seed=plan.seed,
                guidance_scale=guidance,
                scheduler=plan.scheduler,
            )
            picture = f"pictures/split-{index}.png"
            result.image.save(run / picture)
            price = cost(
                sizes,
                EUCI_DEVICE,
                EUCI_EDGE,
                EUCI_LINK,
                num_inference_steps=steps,
                device_steps=plan.device_steps,
                guidance=guidance > 1,
                order=plan.order,
                decode="edge",
                cold_device=index == 0,
            )
            images.append(
                {
                    "prompt": plan.prompt,
                    "order": plan.order,
                    "device_steps": result.device_steps,
                    "edge_steps": result.edge_steps,
                    "scheduler": plan.scheduler,
                    "bytes_up": result.bytes_up,
                    "bytes_down": result.bytes_down,
                    "device_seconds": result.device_seconds,
                    "edge_seconds": result.edge_seconds,
                    "delay_s": price.delay_s,
                    "energy_j": price.energy_j,
                    "bitwise_equal": result.latents is not None and torch.equal(result.latents, latents),
                    "picture": picture,
                }
            )
            if progress is not None:
                progress(index + 1, len(made))
    return {"bitwise_equal": all(image["bitwise_equal"] for image in images), "images": images}


def before_and_after(
    base: str, student: str, recipe: Recipe, run: Path, *, sampling: dict[str, Any] | None = None
) -> list[dict[str, Any]]:
    """The report's `pictures`: base and student at the same prompt and seed, known and taught concepts.

    `sampling` is the student's manifest's: how it is drawn.
    """
    import torch

    torch.set_num_threads(recipe.run.threads)
    seed = seed_of(recipe.run.seed, "before and after")
    wanted = [(value, "taught") for value in recipe.prompts.taught] + [(v, "known") for v in recipe.prompts.known]
    if not wanted:
        return []
    prompts = [prompts_for(recipe.prompts, value, 1, seed)[0] for value, _ in wanted]
    (run / "pictures").mkdir(parents=True, exist_ok=True)
    found = [{"concept": v, "kind": kind, "prompt": p} for (v, kind), p in zip(wanted, prompts, strict=True)]
    for who, path, how in (("base", base, {}), ("student", student, sampling or {})):
        model = with_sampling(recipe, how).model
        pipe = load_pipeline(path, device=recipe.run.device, dtype=recipe.run.dtype, scheduler=model.scheduler)
        images = sample(
            pipe,
            prompts,
            seed=seed,
            num_inference_steps=model.num_inference_steps,
            guidance_scale=model.guidance_scale,
            resolution=recipe.model.resolution,
        )
        for entry, image in zip(found, images, strict=True):
            entry[who] = f"pictures/{who}-{entry['concept']}.png"
            image.save(run / entry[who])
    return found
