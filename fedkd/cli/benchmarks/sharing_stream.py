"""A stream of requests, served as an edge does: alone, by the learned policy, and by one that ignores meaning."""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from fedkd.cli.benchmarks.sharing_prompts import Wanted, stream
from fedkd.cli.benchmarks.sharing_studio import STEPS, Studio, likeness
from fedkd.inference.denoiser import Job
from fedkd.inference.latent_cache import LatentCache, Way
from fedkd.inference.prompt_embedding import DENOISER
from fedkd.planning.sharing_policy import SharingPolicy

CACHE_BYTES = 64 << 20  # as an edge has it by default
WAY = Way("tiny-sd", "any")


@dataclass
class Served:
    """How each request was drawn: where its job forked off (0: nowhere), and the noise it had."""

    wanted: list[Wanted]
    jobs: list[Job]
    shared: list[int]
    probes: int = 0  # steps that were run to tell what prompts mean


def serve(studio: Studio, asked: Sequence[Wanted], seed: int, policy: SharingPolicy) -> tuple[Served, list[Job]]:
    """The stream under the policy, one request after another, and all that they left for each other.

    As at an edge: each forks off the farthest that anybody of similar words has left, and leaves its own steps from
    there on. Requests at the same time would wait for each other's steps, which comes to the same.
    """
    cache, left, jobs, shared = LatentCache(CACHE_BYTES), list[Job](), list[Job](), list[int]()
    by = policy.profile.embedding
    for place, wanted in enumerate(asked):
        embedding = studio.embedding(wanted, by)
        hit = cache.find(WAY, embedding, policy.steps, STEPS, words=wanted.prompt)
        job = studio.forked(hit.job, wanted) if hit else studio.job(wanted, 100_000 * (seed + 1) + place)
        taken = hit.taken if hit else {wanted.prompt}
        jobs.append(job)
        shared.append(job.step)

        def leave(_: int, job: Job, wanted: Wanted = wanted, embedding: Any = embedding, taken: Any = taken) -> None:
            if job.step in policy.forks:
                left.append(studio.forked(job, wanted))
                cache.put(WAY, embedding, left[-1], taken)

        studio.finish([job], leave)
    # one of each prompt, when it is asked for the first time, and one of the empty prompt
    probes = 1 + len({wanted.prompt for wanted in asked}) if by == DENOISER else 0
    return Served(list(asked), jobs, shared, probes), left


def at_random(studio: Studio, like: Served, left: Sequence[Job], seed: int) -> Served:
    """The same requests with the same shared steps, each forked off whomever chance gives it."""
    rng = random.Random(f"random groups {seed}")
    jobs = []
    for wanted, job, step in zip(like.wanted, like.jobs, like.shared, strict=True):
        there = [each for each in left if each.step == step]
        jobs.append(studio.forked(rng.choice(there), wanted) if step else job)
    studio.finish(jobs)
    return Served(like.wanted, jobs, like.shared)


def figures(studio: Studio, served: Served) -> dict[str, float]:
    """Steps saved, prompt accuracy, and what was lost against the same prompts drawn alone with the same noise."""
    begun = [place for place, step in enumerate(served.shared) if step]
    alone = list(served.jobs)
    for place in begun:
        alone[place] = studio.job(served.wanted[place], served.jobs[place].seed)
    studio.finish([alone[place] for place in begun])
    images, expected = studio.pictures(served.jobs), studio.pictures(alone)
    right, could = studio.right(images, served.wanted), studio.right(expected, served.wanted)
    psnr, ssim = likeness(images, expected)
    return {
        "steps saved": (sum(served.shared) - served.probes) / (STEPS * len(served.jobs)),
        "pictures that share": len(begun) / len(served.jobs),
        "accuracy": float(right.mean()),
        "accuracy alone": float(could.mean()),
        "accuracy lost": float(np.mean(could - right)),
        "PSNR (dB)": float(psnr.mean()),
        "SSIM": float(ssim.mean()),
    }


def unshared(studio: Studio, asked: Sequence[Wanted], seed: int) -> dict[str, float]:
    """The stream with nothing shared, each request with its own noise."""
    jobs = [studio.job(wanted, 100_000 * (seed + 1) + place) for place, wanted in enumerate(asked)]
    studio.finish(jobs)
    accuracy = float(studio.right(studio.pictures(jobs), asked).mean())
    return {"steps saved": 0.0, "pictures that share": 0.0, "accuracy": accuracy, "accuracy lost": 0.0}


def compared(studio: Studio, count: int, seed: int, policies: dict[str, SharingPolicy]) -> dict[str, dict[str, float]]:
    """All ways to serve one stream of `count` requests; meaning is ignored in as many steps as the first policy's."""
    asked = stream(count, seed)
    found = {"unshared": unshared(studio, asked, seed)}
    for place, (name, policy) in enumerate(policies.items()):
        served, left = serve(studio, asked, seed, policy)
        found[name] = figures(studio, served)
        if not place:
            found["random groups, same steps"] = figures(studio, at_random(studio, served, left, seed))
    return found
