"""Steps that requests share at an edge: whoever comes first is drawn as ever, and those who mean nearly the same fork.

The first one's prompt is drawn for its own sake, so its picture stays what it was. Others fork off it at the step that
the policy allows for their similarity, from the latents it leaves there or has left in the cache, finish alone, and
leave their own steps from there on to those who come after them.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from fedkd.inference.denoiser import Job
from fedkd.inference.latent_cache import LatentCache, Way
from fedkd.inference.prompt_embedding import DENOISER, prompt_embedder, words_of
from fedkd.inference.shared_steps import drawn_by, fork
from fedkd.planning.sharing import cosines, unit
from fedkd.planning.sharing_policy import SharingPolicy, SharingProfile
from fedkd.serving.errors import EdgeFault
from fedkd.serving.metrics import EdgeMetrics
from fedkd.serving.probing import Answers, Step
from fedkd.serving.served import Served

OnStep = Callable[[Job], None]


@dataclass(frozen=True)
class Wish:
    """What a request allows: `until` is the edge's last step, `exact` never shares.

    `any_seed` takes another picture's noise, but not that of one with the same words: it would be the same picture.
    """

    prompt: str
    until: int
    exact: bool = False
    any_seed: bool = False
    deadline_s: float | None = None


@dataclass(eq=False)
class _Leader:
    """A picture that others may fork off while it is drawn; used on the event loop alone."""

    way: Way
    embedding: Any
    until: int
    taken: set[str] | None  # words with a picture of this run, where none may have a second; the cache adds to it
    start: int = 0  # where it forked off itself
    members: int = 1
    left: dict[int, Job] = field(default_factory=dict)  # what it left, by step
    awaited: dict[int, asyncio.Future[None]] = field(default_factory=dict)

    def leave(self, job: Job) -> None:
        """Keep the job for those who fork at its step."""
        self.left[job.step] = job
        if (waiting := self.awaited.pop(job.step, None)) and not waiting.done():
            waiting.set_result(None)

    def end(self) -> None:
        """Nothing more is left; who waits looks for another."""
        for waiting in self.awaited.values():
            if not waiting.done():
                waiting.set_result(None)
        self.awaited.clear()


@dataclass(frozen=True)
class Begun:
    """A job to go on with, the `shared` steps it was spared, and what its leader must be told of its steps."""

    job: Job
    shared: int = 0
    told: OnStep | None = None

    def on_step(self, also: OnStep | None) -> OnStep | None:
        """What the engine is to call after each step, `also` among it."""
        if self.told is None or also is None:
            return self.told or also
        first = self.told

        def both(job: Job) -> None:
            first(job)
            also(job)

        return both


class Sharing:
    """The groups and the cache of one edge; its methods run on the event loop.

    A group has `most` members at most. PlanningError, EmbeddingError or ValueError for what cannot be.
    """

    def __init__(self, policy: SharingPolicy, *, most: int, cache_bytes: int, metrics: EdgeMetrics) -> None:
        if most < 2:
            raise ValueError(f"share_group={most} leaves nobody to share with; give at least 2")
        self.policy, self.most, self.metrics = policy, most, metrics
        self.cache = LatentCache(cache_bytes)
        by = policy.profile.embedding
        self._embed = None if by == DENOISER else prompt_embedder(by)
        self._answers = Answers(metrics)
        self._forks = policy.forks
        self._leaders: dict[Way, list[_Leader]] = {}
        metrics.follow_all("fedkd_latent_cache", "Latents kept for later prompts.", self.cache.stats)

    @asynccontextmanager
    async def joined(self, served: Served, job: Job, wish: Wish, one_step: Step) -> AsyncIterator[Begun]:
        """The job that stands for `job`, which is at its start: itself, or a fork that others' steps have brought on.

        `one_step` takes a job a step on, for profiles that ask the denoiser what prompts mean.
        EdgeFault 504 when the deadline passes while it waits for a leader's steps.
        """
        seen = await self._seen(served, job, wish, one_step)
        if seen is None:
            yield Begun(job)
            return
        embedding, words = seen
        way = Way(served.digest, (drawn_by(job), "any" if wish.any_seed else job.seed))
        found, taken, source = await self._found(way, embedding, words, wish)
        if found is None:
            taken = {words} if wish.any_seed else None
        else:
            self.metrics.shared.labels(served.name, source).inc()
            self.metrics.steps_saved.labels(served.name).inc(found.step)
            job = fork(found, job.conditions)
        own = _Leader(way, embedding, wish.until, taken, job.step)
        self._leaders.setdefault(way, []).append(own)
        try:
            yield Begun(job, job.step, self._leaving(own))
        finally:
            self._leaders[way].remove(own)
            if not self._leaders[way]:
                del self._leaders[way]
            own.end()

    async def _found(self, way: Way, embedding: Any, words: str, wish: Wish) -> tuple[Job | None, set[str] | None, str]:
        """The farthest of what the group or the cache has left, the words that its run has had, and which it was."""
        began = time.monotonic()
        while True:
            leader, step = self._leader(way, embedding, words, wish.until)
            hit = self.cache.find(way, embedding, self.policy.steps, wish.until, words=words, least=max(1, step))
            if hit is not None:
                return hit.job, hit.taken, "cache"
            if leader is None:
                return None, None, ""
            leader.members += 1
            if leader.taken is not None:
                leader.taken.add(words)
            found = None
            try:
                found = await self._left(leader, step, wish, began)
            finally:
                if found is None:  # it leaves the group again
                    leader.members -= 1
                    if leader.taken is not None:
                        leader.taken.discard(words)
            if found is not None:
                return found, leader.taken, "group"

    def forget(self, served: Served) -> None:
        """Drop what a version that is served no longer has left in the cache."""
        self.cache.forget(served.digest)

    async def _seen(self, served: Served, job: Job, wish: Wish, one_step: Step) -> tuple[Any, str] | None:
        """The direction and the words of a prompt that may share; None for one that may not."""
        fits = self.policy.fits(type(job.scheduler).__name__, job.total, job.guidance_scale)
        if wish.exact or job.step or not fits or not self._forks or wish.until < self._forks[0]:
            return None
        conditions = job.conditions or {}
        words = await asyncio.to_thread(words_of, conditions)  # on a GPU it waits for the forward in hand
        if self._embed is None:
            vector = await self._answers.of(served, job, words, one_step)
        else:
            vector = await asyncio.to_thread(self._embed, wish.prompt, conditions)
        return None if vector is None else (unit(vector), words)

    def _leader(self, way: Way, embedding: Any, words: str, until: int) -> tuple[_Leader | None, int]:
        """Who is being drawn and has room, and the step to fork off at: the farthest there is."""
        best, farthest = None, 0
        for leader in self._leaders.get(way, []):
            if leader.taken is not None and words in leader.taken:
                continue
            may = self.policy.steps(float(cosines(embedding, leader.embedding[None])[0]))
            farthest_left = min(may, until, leader.until)
            step = max((each for each in self._forks if leader.start < each <= farthest_left), default=0)
            if leader.members < self.most and step > farthest:
                best, farthest = leader, step
        return best, farthest

    async def _left(self, leader: _Leader, step: int, wish: Wish, began: float) -> Job | None:
        """What the leader leaves at `step`; None when it ends before that."""
        if step not in leader.left:
            waiting = leader.awaited.setdefault(step, asyncio.get_running_loop().create_future())
            left_s = None if wish.deadline_s is None else wish.deadline_s - (time.monotonic() - began)
            # not awaited itself: several may wait for it, and one that gives up must not cancel it
            await asyncio.wait({waiting}, timeout=None if left_s is None else max(0.0, left_s))
            if not waiting.done():
                raise EdgeFault(504, "not done within deadline_s", param="deadline_s", code="deadline_exceeded")
        return leader.left.get(step)

    def _leaving(self, leader: _Leader) -> OnStep:
        loop, wanted = asyncio.get_running_loop(), {step for step in self._forks if leader.start < step <= leader.until}

        def told(job: Job) -> None:  # on the engine's thread
            if job.step in wanted:
                kept = fork(job, None)
                self.cache.put(leader.way, leader.embedding, kept, leader.taken)
                loop.call_soon_threadsafe(leader.leave, kept)

        return told


def sharing_of(
    profile: str, *, allowed_loss: float, most: int, cache_bytes: int, metrics: EdgeMetrics
) -> Sharing | None:
    """Sharing by the profile in the file `profile`; None, without sharing, where that is ''."""
    if not profile:
        return None
    policy = SharingPolicy(SharingProfile.load(Path(profile).expanduser()), allowed_loss)
    return Sharing(policy, most=most, cache_bytes=cache_bytes, metrics=metrics)
