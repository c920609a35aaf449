"""`fedkd bench conditions`: bytes, satisfied users and quality on conditions of real pictures, beside other methods."""

from __future__ import annotations

import io
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from fedkd.cli.benchmarks.request import Request
from fedkd.cli.benchmarks.result import Result, Rows, Table, at_least

if TYPE_CHECKING:
    import numpy as np
    from PIL import Image

    from fedkd.planning.denoising_problem import Allocation
    from fedkd.planning.denoising_rounds import Round
    from fedkd.planning.quality import ConditionProfile

SEEDS, ROUNDS, USERS = (0, 1), 100, 5
MODEL, SIDE, SOURCE_SIDE, JPEG_QUALITY = "tiny-sd", 32, 512, 90
ASKED = {"resolutions": [0.25, 0.5, 1.0], "levels": [0.2, 1.0], "steps": [5, 10, 20, 40], "guidance_scale": 2.0}
QUICK = {**ASKED, "resolutions": [0.5, 1.0], "levels": [1.0], "steps": [5, 40]}
NETS = {"canny": "tiny-sd-canny"}  # what ships
PICTURES, QUICK_PICTURES, QUICK_ROUNDS = 6, 2, 10
KNOWN = 7  # tiny-sd has seen the digits below
OURS, SERVICE = "conditions and steps planned together", "AaaS"
COLUMNS = ["satisfied %", "quality", "bytes up", "bytes down", "bytes", "round s"]
Method = Callable[["Round", "np.random.Generator"], "Allocation"]


@dataclass(frozen=True)
class Measured:
    """What real pictures gave: the profile of their conditions, and the mean bytes of whole pictures."""

    profile: ConditionProfile
    source_bytes: int  # the source as a phone's JPEG
    picture_bytes: int  # the drawn picture as PNG
    latents_bytes: int  # final latents in float16, without the hand-off's header


def run(request: Request) -> Result:
    """All methods on the same rounds of users, for each seed; overrides: KIND=FOLDER of other ControlNets."""
    seeds = SEEDS[:1] if request.quick else SEEDS
    nets = _nets(request)
    rows: Rows = {}
    sizes: Rows = {}
    for seed in seeds:
        request.say(f"conditions: measuring pictures of seed {seed}")
        found = measured(seed, request.quick, nets)
        for name, figures in play(found, seed, QUICK_ROUNDS if request.quick else ROUNDS).items():
            for column, value in figures.items():
                rows.setdefault(name, {}).setdefault(column, []).append(value)
        for name, value in (
            (f"source, {SOURCE_SIDE} pixels, JPEG {JPEG_QUALITY}", found.source_bytes),
            (f"picture, {SIDE} pixels, PNG", found.picture_bytes),
            ("latents, fp16", found.latents_bytes),
            ("smallest condition", found.profile.size_bytes.min()),
            ("largest condition", found.profile.size_bytes.max()),
        ):
            sizes.setdefault(name, {}).setdefault("bytes", []).append(float(value))
    saved = [
        100 * (1 - ours / theirs) for ours, theirs in zip(rows[OURS]["bytes"], rows[SERVICE]["bytes"], strict=True)
    ]
    more = [ours - theirs for ours, theirs in zip(rows[OURS]["satisfied %"], rows[SERVICE]["satisfied %"], strict=True)]
    return Result(
        request.name,
        request.command,
        list(seeds),
        [
            Table(f"{USERS} users a round, by method", COLUMNS, rows, plain=True, digits=2),
            Table("What travels, in the mean", ["bytes"], sizes, plain=True, digits=0),
        ],
        [
            at_least("total bytes below AaaS's (%), the worst seed", min(saved), 90.0),
            at_least("satisfied users above AaaS's (points), the worst seed", min(more), 0.0),
        ],
        notes(nets),
    )


def notes(nets: dict[str, str]) -> list[str]:
    """What the figures are, and what they are not."""
    how = f"steered by ControlNets ({', '.join(nets.values())})"
    return [
        f"sources are handwritten digits rendered at {SOURCE_SIDE} pixels: flat pictures, of which a JPEG is a tenth "
        "of a photograph's or less, so that AaaS sends little here",
        f"the model draws {SIDE} pixels; conditions are extracted at that size, as the model takes them",
        f"pictures are {how}; quality is SSIM with the source and the share of the prompt that the reference "
        "classifier reads, weighed by each user's preference",
        "devices, budgets, floors and bandwidths are VCE's Table I; bytes are those of pictures, conditions and "
        "latents, without headers of HTTP and hand-offs",
        "AaaS, SemGen, OQC+ and Random are as in `fedkd bench papers`; OQC+ is solved exactly, above its own method",
    ]


def _nets(request: Request) -> dict[str, str]:
    """{kind: ControlNet} of the overrides, or the one that ships."""
    from fedkd.data.condition_maps import KINDS
    from fedkd.planning.system import PlanningError

    nets = dict(each.partition("=")[::2] for each in request.overrides)
    for kind, place in nets.items():
        if kind not in KINDS or not place:
            raise PlanningError(
                f"'{kind}={place}' is nothing that this benchmark knows; give {' or '.join(KINDS)}=FOLDER"
            )
    return nets or NETS


def measured(seed: int, quick: bool, nets: dict[str, str]) -> Measured:
    """Profile and sizes of pictures of digits that the model knows; what it draws of them with that seed."""
    import numpy as np
    from PIL import Image

    from fedkd.cli.plan_profile_conditions import measure
    from fedkd.evaluation import condition_scores
    from fedkd.models.pipeline import load_pipeline

    sources, captions = pictures(seed, QUICK_PICTURES if quick else PICTURES)
    images = [source.resize((SIDE, SIDE), Image.Resampling.LANCZOS) for source in sources]
    scorers = condition_scores.perceptual("ssim")[1], condition_scores.prompt("classifier", "reference-classifier")[1]
    pipe: Any = load_pipeline(MODEL, scheduler="DDIMScheduler")
    asked: dict[str, Any] = dict(QUICK if quick else ASKED)
    profile = measure(pipe, images, captions, nets, asked, 1.0, seed, scorers, lambda done, total: None)
    drawn = pipe(captions, num_inference_steps=12, guidance_scale=2.0).images
    return Measured(
        profile,
        round(np.mean([_size(source, "JPEG", quality=JPEG_QUALITY) for source in sources])),
        round(np.mean([_size(picture, "PNG", optimize=True) for picture in drawn])),
        2 * pipe.unet.config.in_channels * pipe.unet.config.sample_size**2,
    )


def pictures(seed: int, count: int) -> tuple[list[Image.Image], list[str]]:
    """Digits that the model knows, rendered as large as a phone would send them, with their captions."""
    import numpy as np

    from fedkd.data.digits import COLOURS, DIGITS, TEMPLATE, handwriting, render

    strokes, labels = handwriting("private")
    rng, names = np.random.default_rng(seed), list(COLOURS)
    sources, captions = [], []
    for place in rng.choice(np.flatnonzero(labels < KNOWN), count, replace=False):
        ink, background = (names[each] for each in rng.choice(len(names), 2, replace=False))
        sources.append(render(strokes[place], ink, background, SOURCE_SIDE))
        captions.append(TEMPLATE.format(ink=ink, digit=DIGITS[labels[place]], background=background))
    return sources, captions


def _size(image: Image.Image, form: str, **options: object) -> int:
    buffer = io.BytesIO()
    image.save(buffer, form, **options)
    return buffer.tell()


def methods(found: Measured) -> dict[str, Method]:
    """Ours and the baselines, each from a round to an allocation."""
    from fedkd.planning import denoising_baselines as baselines
    from fedkd.planning.denoising import solve

    return {
        OURS: lambda each, rng: solve(each.joint()),
        "VCE, then DDC": lambda each, rng: solve(each.given(each.conditions())),
        SERVICE: lambda each, rng: baselines.as_a_service(each, rng, raw_bytes=found.source_bytes),
        "SemGen": lambda each, rng: baselines.downscaled(each),
        "OQC+": lambda each, rng: baselines.binary(each.given(each.conditions())),
        "Random": lambda each, rng: baselines.random_round(each, rng),
    }


def play(found: Measured, seed: int, rounds: int) -> dict[str, dict[str, float]]:
    """{method: {column: mean over rounds}}, all methods on the same rounds; bytes are those of one user."""
    import numpy as np

    from fedkd.planning.denoising_rounds import Setting, draw

    setting = Setting(image_bytes=found.picture_bytes, latents_bytes=found.latents_bytes)
    rng, sums = np.random.default_rng(seed), dict[str, list[tuple[float, ...]]]()
    every = methods(found)
    for _ in range(rounds):
        requests = draw(found.profile, rng, USERS, setting)
        for name, method in every.items():
            each = method(requests, rng)
            up, down = float(each.up_bytes.mean()), float(each.down_bytes.mean())
            figures = 100 * each.satisfied.mean(), each.quality.mean(), up, down, up + down, each.round_delay_s
            sums.setdefault(name, []).append(tuple(float(value) for value in figures))
    return {
        name: dict(zip(COLUMNS, (float(value) for value in np.mean(each, axis=0)), strict=True))
        for name, each in sums.items()
    }
