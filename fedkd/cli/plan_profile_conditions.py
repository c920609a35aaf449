"""`fedkd plan profile-conditions`: measure what conditions and their compression do to your own pictures."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

if TYPE_CHECKING:
    from PIL import Image

    from fedkd.planning.quality import ConditionProfile


def profile_conditions(
    pictures: Annotated[
        Path | None,
        typer.Argument(help="Folder of captioned pictures; left out: handwritten digits.", show_default=False),
    ] = None,
    model: Annotated[str, typer.Option(help="A shipped name, a diffusers folder or a hub id.")] = "tiny-sd",
    controlnet: Annotated[
        list[str] | None,
        typer.Option(help="KIND=NAME of a shipped ControlNet, a folder or a hub id; once for each condition."),
    ] = None,
    count: Annotated[int, typer.Option(min=1, help="Pictures, at most.")] = 8,
    resolutions: Annotated[str, typer.Option(help="Resolution levels, 0 to 1.")] = "0.25,0.5,1",
    levels: Annotated[str, typer.Option(help="Quality levels, 0 to 1.")] = "0.2,0.6,1",
    steps: Annotated[
        str, typer.Option(help="Denoising steps to measure at; scores between are interpolated.")
    ] = "5,10,20",
    strength: Annotated[
        float, typer.Option(help="Without a ControlNet: how much of the schedule the condition is noised through.")
    ] = 0.7,
    guidance_scale: Annotated[float, typer.Option(min=0.0, help="How strongly prompts guide.")] = 7.5,
    perceptual: Annotated[str, typer.Option(help="auto, dreamsim or ssim.")] = "auto",
    prompt_scorer: Annotated[str, typer.Option(help="auto, imagereward or classifier.")] = "auto",
    classifier: Annotated[str, typer.Option(help="For --prompt-scorer classifier.")] = "reference-classifier",
    seed: Annotated[int, typer.Option(help="Seed of the pictures.")] = 0,
    out: Annotated[Path, typer.Option(help="The profile's file.")] = Path("condition-profile.json"),
) -> None:
    """Measure quality and bytes of every condition, resolution, quality and number of steps.

    With a ControlNet a condition steers it; without one, drawing starts from the condition itself.

    Example: fedkd plan profile-conditions --count 4 --out mine.json
    Example: fedkd plan profile-conditions --controlnet canny=tiny-sd-canny --guidance-scale 2
    Example: fedkd plan profile-conditions pictures/ --model runwayml/stable-diffusion-v1-5 \
--controlnet canny=lllyasviel/control_v11p_sd15_canny
    """
    from fedkd.cli.console import console, guard, progress_bar

    with guard():
        from fedkd.data.condition_maps import EXTRACTORS
        from fedkd.evaluation import condition_scores
        from fedkd.planning.system import PlanningError
        from fedkd.recipe import nearest

        asked = {
            "resolutions": _numbers("--resolutions", resolutions),
            "levels": _numbers("--levels", levels),
            "steps": [int(each) for each in _numbers("--steps", steps, most=1000, whole=True)],
            "guidance_scale": guidance_scale,
        }
        nets = dict(each.partition("=")[::2] for each in controlnet or [])
        for kind in nets:
            if kind not in EXTRACTORS:
                raise PlanningError(
                    f"--controlnet {kind}: no condition of this name; {nearest(kind, tuple(EXTRACTORS))}"
                )
        if not 0 < strength <= 1:
            raise PlanningError(f"--strength {strength} must lie in 0..1, 0 left out")
        if not out.parent.is_dir():
            raise PlanningError(f"--out {out}: no folder '{out.parent}'; make it first")
        perceptual_name, look = condition_scores.perceptual(perceptual)
        prompt_name, words = condition_scores.prompt(prompt_scorer, classifier)
        from fedkd.models.pipeline import load_pipeline

        pipe = load_pipeline(model, scheduler="DDIMScheduler")
        images, captions = _pictures(pictures, pipe, count, seed)
        with progress_bar("measuring conditions") as progress:
            found = measure(pipe, images, captions, nets, asked, strength, seed, (look, words), progress)
        about = {
            "pictures": str(pictures or "digits"),
            "count": len(images),
            "model": model,
            "controlnets": nets,
            "strength": None if nets else strength,
            "perceptual": perceptual_name,
            "prompt": prompt_name,
            "seed": seed,
            **asked,
        }
        found.save(out, about)
        console.print(f"scores by {perceptual_name} and {prompt_name} on {len(images)} pictures", markup=False)
        print(f"wrote {out}; use it: fedkd plan condition --profile {out}")


def _numbers(option: str, text: str, *, most: float = 1.0, whole: bool = False) -> list[float]:
    """Sorted numbers above 0 and at most `most`; PlanningError for anything else."""
    from fedkd.planning.system import PlanningError

    try:
        values = sorted({float(each) for each in text.split(",")})
    except ValueError:
        values = []
    if not values or not all(0 < each <= most and (each.is_integer() or not whole) for each in values):
        kind = "whole numbers" if whole else "numbers"
        raise PlanningError(f"{option} {text} must be {kind} above 0 and at most {most:g}, with commas between")
    return values


def _pictures(folder: Path | None, pipe: Any, count: int, seed: int) -> tuple[list[Image.Image], list[str]]:
    """Square pictures of the model's size with their captions."""
    from fedkd.data.digits import coloured_digits
    from fedkd.data.sources import load_folder

    side = pipe.unet.config.sample_size * 2 ** (len(pipe.vae.config.block_out_channels) - 1)
    if folder is None:
        rows: list[dict[str, Any]] = coloured_digits("private", side, seed)[:count]
    else:
        dataset, _ = load_folder(str(folder), side)
        rows = [dataset[place] for place in range(min(count, len(dataset)))]
    return [row["image"] for row in rows], [row["caption"] for row in rows]


def measure(
    pipe: Any,
    images: list[Image.Image],
    captions: list[str],
    nets: dict[str, str],
    asked: dict[str, Any],
    strength: float,
    seed: int,
    scorers: tuple[Any, Any],
    progress: Any,
) -> ConditionProfile:
    """The profile of every condition of `nets` (KIND: ControlNet; none: all kinds, drawn from the condition itself).

    `asked` has `resolutions`, `levels`, `steps` and `guidance_scale`; `scorers` are (perceptual, prompt).
    `progress(done, total)`.
    """
    import numpy as np

    from fedkd.data.condition_bytes import compress
    from fedkd.data.condition_maps import EXTRACTORS
    from fedkd.planning.quality import ConditionProfile

    kinds = list(nets) or list(EXTRACTORS)
    cells = [(kind, alpha, beta) for kind in kinds for alpha in asked["resolutions"] for beta in asked["levels"]]
    counts, every = asked["steps"], np.arange(max(asked["steps"]) + 1)
    done, total = 0, len(cells) * len(counts)
    sizes, scores = [], []
    facts = (strength, float(asked["guidance_scale"]), seed)
    drawers = {kind: _drawer(pipe, f"{kind}={nets[kind]}" if kind in nets else "", *facts) for kind in kinds}
    for kind, alpha, beta in cells:
        packed = [compress(EXTRACTORS[kind](image), alpha, beta) for image in images]
        sizes.append(np.mean([size for _, size in packed]))
        pair = []
        for steps in counts:
            drawn = drawers[kind]([arrived for arrived, _ in packed], captions, steps)
            pair.append((scorers[0](images, drawn).mean(), scorers[1](captions, drawn).mean()))
            done += 1
            progress(done, total)
        scores.append([np.interp(every, [0, *counts], [0.0, *axis]) for axis in zip(*pair, strict=True)])
    names, alphas, betas = zip(*cells, strict=True)
    return ConditionProfile(
        conditions=names,
        resolution=np.array(alphas),
        level=np.array(betas),
        size_bytes=np.ceil(sizes),
        perceptual=np.array([each[0] for each in scores]),
        prompt=np.array([each[1] for each in scores]),
    )


def _drawer(pipe: Any, net: str, strength: float, guidance_scale: float, seed: int) -> Any:
    """draw(conditions, captions, steps) -> pictures, each with that many denoising steps; `net` is KIND=PLACE or ''."""
    import math

    import torch

    if not net:
        from diffusers import AutoPipelineForImage2Image

        started = AutoPipelineForImage2Image.from_pipe(pipe)
    else:
        from diffusers import StableDiffusionControlNetPipeline

        from fedkd.data.condition_maps import KINDS
        from fedkd.models.controlnet_folder import find_controlnet, load_controlnet

        steering = load_controlnet(find_controlnet(net, KINDS), pipe.unet)
        started = StableDiffusionControlNetPipeline.from_pipe(pipe, controlnet=steering)
    started.set_progress_bar_config(disable=True)

    def draw(conditions: list[Image.Image], captions: list[str], steps: int) -> list[Image.Image]:
        generator = torch.Generator("cpu").manual_seed(seed)
        extra: dict[str, Any] = {"num_inference_steps": steps, "guidance_scale": guidance_scale}
        if not net:  # image-to-image runs `strength` of the steps it is asked for
            extra |= {"num_inference_steps": math.ceil(steps / strength - 1e-9), "strength": strength}
        return started(prompt=captions, image=conditions, generator=generator, **extra).images

    return draw
