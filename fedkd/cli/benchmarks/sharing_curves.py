"""What sharing k steps costs by the similarity of two prompts: the profile that policies learn from, and its sheets."""

from __future__ import annotations

import hashlib
import json
import os
import random
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from fedkd.cli.benchmarks.request import Request
from fedkd.cli.benchmarks.result import Rows, Table
from fedkd.cli.benchmarks.sharing_prompts import (
    KINDS,
    PARAPHRASED,
    TEMPLATES,
    Wanted,
    any_wanted,
    changed,
    in_other_words,
)
from fedkd.cli.benchmarks.sharing_studio import GUIDANCE, SCHEDULER, STEPS, Studio, likeness
from fedkd.inference.denoiser import Job
from fedkd.inference.prompt_embedding import DENOISER, TEXT_ENCODER
from fedkd.planning.sharing_policy import SharingProfile, measured

# Finer towards 1, where prompts that differ in one word lie; each bin of some hundred pairs.
EDGES = {
    DENOISER: (-1.0, 0.6, 0.8, 0.9, 0.97, 0.99),
    TEXT_ENCODER: (-1.0, 0.8, 0.9, 0.95, 0.98, 0.99),
}
GOOD = (Wanted("three", "red", "white"), Wanted("six", "red", "white"))  # as "Apple on Table", "Lemon on Table"
BAD = (Wanted("zero", "black", "yellow"), Wanted("four", "white", "purple"))
SHEET_STEPS = (0, 3, 5, 7, 9, 11, 12)


@dataclass(frozen=True)
class Curves:
    """Of n pairs: `similarity` (n,) by embedding, and after 0..T shared steps what the second has, (n, T+1) each."""

    similarity: dict[str, Any]
    lost: Any
    psnr: Any
    ssim: Any


def pairs(count: int, seed: int) -> list[tuple[Wanted, Wanted]]:
    """`count` pairs of each kind of difference, in words that vary as they do in a stream."""
    rng = random.Random(f"pairs {seed}")
    found = []
    for kind in KINDS:
        for _ in range(count):
            first = in_other_words(any_wanted(rng), PARAPHRASED, rng)
            second = changed(first, kind, rng)
            found.append((first, second if kind == "paraphrase" else in_other_words(second, PARAPHRASED, rng)))
    return found


def ladder(studio: Studio, couples: Sequence[tuple[Wanted, Wanted]], seeds: Sequence[int]) -> list[list[Job]]:
    """For each pair the second's finished jobs after 0..T steps of the first's prompt, with the pair's noise."""
    first = [studio.job(one, seed) for (one, _), seed in zip(couples, seeds, strict=True)]
    rungs = [[studio.forked(job, other)] for job, (_, other) in zip(first, couples, strict=True)]
    studio.finish(first, lambda place, job: rungs[place].append(studio.forked(job, couples[place][1])))
    studio.finish([job for rung in rungs for job in rung])
    return rungs


def curves(studio: Studio, count: int, seed: int) -> Curves:
    """All kinds of pairs, `count` of each, in every number of shared steps."""
    couples = pairs(count, seed)
    rungs = ladder(studio, couples, [1_000_000 * (seed + 1) + place for place in range(len(couples))])
    others = [other for _, other in couples]
    alone = studio.pictures([rung[0] for rung in rungs])
    right = studio.right(alone, others)
    lost, psnr, ssim = [], [], []
    for step in range(STEPS + 1):
        images = studio.pictures([rung[step] for rung in rungs])
        lost.append(right - studio.right(images, others))
        near = likeness(images, alone)
        psnr.append(near[0])
        ssim.append(near[1])
    similarity = {
        by: np.array([float(studio.embedding(one, by) @ studio.embedding(other, by)) for one, other in couples])
        for by in EDGES
    }
    return Curves(similarity, *(np.stack(each, axis=1) for each in (lost, psnr, ssim)))


def kept(studio: Studio, count: int, seed: int, out: Path) -> Curves:
    """`curves`, or what an earlier call of this benchmark has drawn of the same pairs."""
    identity = json.dumps([studio.digest, count, seed, STEPS, GUIDANCE, SCHEDULER, KINDS, TEMPLATES, PARAPHRASED])
    path = out / "sharing" / f"{hashlib.sha256(identity.encode()).hexdigest()[:12]}.npz"
    if path.is_file():
        facts = dict(np.load(path, allow_pickle=False))
        return Curves({by: facts.pop(by) for by in EDGES}, **facts)
    made = curves(studio, count, seed)
    path.parent.mkdir(parents=True, exist_ok=True)
    part = path.with_suffix(".part.npz")
    np.savez(part, **made.similarity, lost=made.lost, psnr=made.psnr, ssim=made.ssim)
    os.replace(part, path)
    return made


def profile_of(found: Sequence[Curves], studio: Studio, by: str) -> SharingProfile:
    """What policies learn from: all seeds' pairs together, alike as the embedding `by` sees them."""
    return measured(
        np.concatenate([each.similarity[by] for each in found]),
        np.concatenate([each.lost for each in found])[:, 1:STEPS],
        edges=EDGES[by],
        steps=tuple(range(1, STEPS)),
        total=STEPS,
        scheduler=SCHEDULER,
        guidance_scale=GUIDANCE,
        embedding=by,
        model=studio.digest,
    )


def tables(found: Sequence[Curves]) -> list[Table]:
    """Accuracy lost, PSNR and SSIM by similarity and shared steps, and the steps that a pair is spared."""
    steps = [str(step) for step in range(STEPS + 1)]
    kinds: list[tuple[str, str, dict[str, Any]]] = [
        ("lost", "Prompt accuracy lost (points) by shared steps k", {}),
        ("psnr", "PSNR (dB) against the picture drawn alone, by k", {"plain": True}),
        ("ssim", "SSIM against the picture drawn alone, by k", {"plain": True, "digits": 3}),
    ]
    made = []
    for name, title, options in kinds:
        rows: Rows = {}
        edges = EDGES[DENOISER]
        for place, low in enumerate(edges):
            high = (*edges, 1.0)[place + 1]
            row: dict[str, list[float]] = {}
            for each in found:
                bins = np.searchsorted(edges, np.minimum(each.similarity[DENOISER], 1.0), side="right") - 1
                inside = getattr(each, name)[bins == place]
                for step in range(STEPS + 1) if len(inside) else ():
                    row.setdefault(str(step), []).append(float(inside[:, step].mean()))
            rows[f"similarity {low:g} to {high:g}"] = row
        made.append(Table(title, steps, rows, **options))
    saved: Rows = {"a pair": {str(k): [k / (2 * STEPS)] for k in range(STEPS + 1)}}
    saved |= {"a group of 8": {str(k): [7 * k / (8 * STEPS)] for k in range(STEPS + 1)}}
    return [Table("UNet steps saved by k", steps, saved), *made]


def sheets(studio: Studio, request: Request) -> list[str]:
    """CDDAA Fig. 5 and Fig. 6: one share that goes well and one that goes wrong; lines that say where they are."""
    from fedkd.evaluation.contact_sheet import contact_sheet

    said = []
    request.out.mkdir(parents=True, exist_ok=True)
    for name, couple, figure in (("good", GOOD, 5), ("bad", BAD, 6)):
        path = Path(request.out / f"sharing-{name}.png")
        rungs = ladder(studio, [couple] * 3, [7, 8, 9])
        images = [image for rung in rungs for image in studio.pictures([rung[step] for step in SHEET_STEPS])]
        contact_sheet(images, columns=len(SHEET_STEPS), scale=3).save(path)
        similarity = float(studio.embedding(couple[0], DENOISER) @ studio.embedding(couple[1], DENOISER))
        columns = ", ".join(map(str, SHEET_STEPS))
        said.append(
            f"{path}: CDDAA Fig. {figure}: '{couple[1].prompt}' after k = {columns} of {STEPS} "
            f"steps of '{couple[0].prompt}', similarity {similarity:.3f}; three seeds"
        )
    return said
