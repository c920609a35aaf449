"""CDDAA Fig. 3: shared latents over a link that flips bits, and what the member's own steps make of them."""

from __future__ import annotations

import random

from fedkd.cli.benchmarks.result import Rows, Table
from fedkd.cli.benchmarks.sharing_prompts import Wanted, any_wanted, changed
from fedkd.cli.benchmarks.sharing_studio import STEPS, Studio, likeness
from fedkd.inference.channel import over_channel
from fedkd.inference.denoiser import Job
from fedkd.inference.shared_steps import fork
from fedkd.inference.wire import Form

RATES = (0.0, 0.005, 0.01, 0.02, 0.03, 0.05)
FORMS: tuple[tuple[str, Form], ...] = (
    ("fp16, raw", "fp16"),
    ("uint8", "uint8"),
    ("uint8, protected", "uint8_protected"),
)
SHARED = 5  # of 12; the paper: 5 of 11


def tables(studio: Studio, count: int, seeds: list[int]) -> list[Table]:
    """Accuracy and likeness to what a link without errors gives, by bit-error rate (%) and wire form."""
    columns = [f"{100 * rate:g}" for rate in RATES]
    found: dict[str, Rows] = {
        "Prompt accuracy": {name: {} for name, _ in FORMS},
        "PSNR (dB)": {name: {} for name, _ in FORMS},
        "SSIM": {name: {} for name, _ in FORMS},
    }
    for seed in seeds:
        rng = random.Random(f"channel {seed}")
        first = [any_wanted(rng) for _ in range(count)]
        others = [changed(each, "digit", rng) for each in first]
        leaders = [studio.job(each, 500_000 * (seed + 1) + place) for place, each in enumerate(first)]
        handed: dict[int, Job] = {}

        def keep(place: int, job: Job, handed: dict[int, Job] = handed, others: list[Wanted] = others) -> None:
            if job.step == SHARED:
                handed[place] = studio.forked(job, others[place])

        studio.finish(leaders, keep)
        clean = [fork(handed[place], handed[place].conditions) for place in range(count)]
        studio.finish(clean)
        expected = studio.pictures(clean)
        for rate, column in zip(RATES, columns, strict=True):
            for name, form in FORMS:
                jobs = [fork(handed[place], handed[place].conditions) for place in range(count)]
                for place, job in enumerate(jobs):
                    job.latents = over_channel(job.latents, form, bit_flip_rate=rate, seed=1000 * seed + place)
                studio.finish(jobs)
                images = studio.pictures(jobs)
                psnr, ssim = likeness(images, expected)
                for title, value in (
                    ("Prompt accuracy", studio.right(images, others).mean()),
                    ("PSNR (dB)", psnr.mean()),
                    ("SSIM", ssim.mean()),
                ):
                    found[title][name].setdefault(column, []).append(float(value))
    about = f"after {SHARED} of {STEPS} shared steps over a noisy link, by bit-error rate (%)"
    options = {"Prompt accuracy": {}, "PSNR (dB)": {"plain": True}, "SSIM": {"plain": True, "digits": 3}}
    return [Table(f"{title} {about}", columns, rows, **options[title]) for title, rows in found.items()]  # type: ignore[arg-type]
