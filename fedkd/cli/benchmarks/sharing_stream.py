"""A stream of requests, served as an edge does: alone, by the learned policy, and by one that ignores meaning."""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np

from fedkd.cli.benchmarks.sharing_prompts import Wanted, stream
from fedkd.cli.benchmarks.sharing_studio import STEPS, Studio, likeness
from fedkd.inference.denoiser import Job
from fedkd.inference.latent_cache import LatentCache, Way
from fedkd.planning.sharing import SimilarityGraph
from fedkd.planning.sharing_policy import SharingPolicy

WINDOW = 16  # requests that are at the edge at the same time
GROUP = 8
CACHE_BYTES = 4 << 20
WAY = Way("tiny-sd", "any")


@dataclass
class Served:
    """How each request was drawn: where its job forked off (0: nowhere), and the noise it had."""

    wanted: list[Wanted]
    jobs: list[Job]
    shared: list[int]


@dataclass
class Run:
    """A picture that is drawn and the members that fork off it, with their steps; `taken` as the cache has it."""

    leader: int
    taken: set[str]
    members: dict[int, int] = field(default_factory=dict)
    kept: dict[int, Job] = field(default_factory=dict)


def serve(studio: Studio, asked: Sequence[Wanted], seed: int, policy: SharingPolicy) -> tuple[Served, list[Job]]:
    """The stream under the policy, groups in each window and the cache between; and all jobs that leaders left.

    As at an edge, no prompt gets a second picture of one run, since that would be the same picture: whoever is left
    over leads a group of its own.
    """
    cache, left = LatentCache(CACHE_BYTES), list[Job]()
    jobs: dict[int, Job] = {}
    for begin in range(0, len(asked), WINDOW):
        waiting = []
        for place in range(begin, min(begin + WINDOW, len(asked))):
            wanted = asked[place]
            hit = cache.find(WAY, studio.embedding(wanted), policy.steps, STEPS, words=wanted.prompt)
            if hit is not None:
                jobs[place] = studio.forked(hit.job, wanted)
            else:
                waiting.append(place)
        runs, again = list[Run](), list[int]()
        while waiting:
            graph = SimilarityGraph[int](max(-1.0, min(1.0, policy.floor)))
            for place in waiting:
                graph.add(place, studio.embedding(asked[place]))
            for group in graph.groups(GROUP):
                run = Run(group.leader, {asked[group.leader].prompt})
                runs.append(run)
                for member, similarity in zip(group.members[1:], group.similarity[1:], strict=True):
                    step = policy.steps(similarity)  # within the floor, but in a bin that may share nothing: 0
                    if asked[member].prompt in run.taken or not step:
                        again.append(member)
                    else:
                        run.taken.add(asked[member].prompt)
                        run.members[member] = step
            waiting, again = again, []
        leaders = [studio.job(asked[run.leader], 100_000 * (seed + 1) + run.leader) for run in runs]

        def keep(which: int, job: Job, runs: Sequence[Run] = runs) -> None:
            if job.step in policy.forks:
                run = runs[which]
                run.kept[job.step] = studio.forked(job, asked[run.leader])
                left.append(run.kept[job.step])
                cache.put(WAY, studio.embedding(asked[run.leader]), run.kept[job.step], run.taken)

        studio.finish(leaders, keep)
        for run, leader in zip(runs, leaders, strict=True):
            jobs[run.leader] = leader
            for member, step in run.members.items():
                jobs[member] = studio.forked(run.kept[step], asked[member])
    made = [jobs[place] for place in range(len(asked))]
    shared = [0 if job.step == job.total else job.step for job in made]
    studio.finish(made)
    return Served(list(asked), made, shared), left


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
        "steps saved": sum(served.shared) / (STEPS * len(served.jobs)),
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


def compared(studio: Studio, count: int, seed: int, policy: SharingPolicy) -> dict[str, dict[str, float]]:
    """All three ways to serve one stream of `count` requests."""
    asked = stream(count, seed)
    served, left = serve(studio, asked, seed, policy)
    return {
        "unshared": unshared(studio, asked, seed),
        "learned policy": figures(studio, served),
        "random groups, same steps": figures(studio, at_random(studio, served, left, seed)),
    }
