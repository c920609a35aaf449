"""A fork goes on as its own picture, bit for bit, and what it shares it shares by copy alone."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch

from fedkd.inference.denoiser import denoise, hand_off, take_up
from fedkd.inference.handoff import HandOff
from fedkd.inference.latent_cache import LatentCache, Way
from fedkd.inference.prompt_embedding import EmbeddingError, prompt_embedder, text_encoder_embedding
from fedkd.inference.shared_steps import denoise_group, fork, mean_conditions, size_bytes
from tests.inference.pictures import SCHEDULERS, lone, picture

WAY = Way("digest", ("DDIM", 4))
ONES = np.array([1.0, 0.0])


@pytest.mark.parametrize("scheduler", SCHEDULERS)
def test_a_fork_ends_bit_for_bit_as_the_job_itself(tiny_pipeline: Any, scheduler: str) -> None:
    job = picture(tiny_pipeline, 3, scheduler=scheduler)
    denoise(tiny_pipeline.unet, job, 2)
    forked = fork(job, job.conditions)
    for each in (job, forked):
        denoise(tiny_pipeline.unet, each)
    expected = lone(tiny_pipeline, seed=3, scheduler=scheduler)
    assert torch.equal(job.latents, expected) and torch.equal(forked.latents, expected)


@pytest.mark.parametrize("lead", ["first", "mean"])
def test_no_shared_steps_are_the_lone_pictures_bit_for_bit(tiny_pipeline: Any, lead: str) -> None:
    prompts = ["a red seven", "a blue six"]
    jobs = [picture(tiny_pipeline, place, prompt=prompt) for place, prompt in enumerate(prompts)]
    for place, job in enumerate(denoise_group(tiny_pipeline.unet, jobs, 0, lead=lead)):
        denoise(tiny_pipeline.unet, job)
        assert torch.equal(job.latents, lone(tiny_pipeline, seed=place, prompt=prompts[place]))


def test_a_group_of_one_shares_nothing(tiny_pipeline: Any) -> None:
    (job,) = denoise_group(tiny_pipeline.unet, [picture(tiny_pipeline)], 3)
    assert job.step == 0


@pytest.mark.parametrize(
    "scheduler", ["DDIMScheduler", "DPMSolverMultistepScheduler", "EulerAncestralDiscreteScheduler"]
)
def test_members_fork_with_their_own_prompts_and_the_first_is_exact(tiny_pipeline: Any, scheduler: str) -> None:
    prompts = ["a red seven", "a blue six", "a green one"]
    jobs = [picture(tiny_pipeline, 5, prompt=prompt, scheduler=scheduler) for prompt in prompts]
    forked = denoise_group(tiny_pipeline.unet, jobs, 2)
    assert [job.step for job in forked] == [2, 2, 2]
    for job, own in zip(forked, jobs, strict=True):
        assert job.conditions is own.conditions
        denoise(tiny_pipeline.unet, job)
    assert torch.equal(forked[0].latents, lone(tiny_pipeline, seed=5, prompt=prompts[0], scheduler=scheduler))
    assert len({tuple(job.latents.flatten().tolist()) for job in forked}) == 3


def test_a_fork_is_handed_off_and_ends_on_a_device_as_at_the_edge(tiny_pipeline: Any) -> None:
    jobs = [picture(tiny_pipeline, 5, prompt=each, scheduler="UniPCMultistepScheduler") for each in ("a one", "a six")]
    member = denoise_group(tiny_pipeline.unet, jobs, 2)[1]
    data = hand_off(member, "digest", with_conditions=True).to_bytes()
    on_device = denoise(tiny_pipeline.unet, take_up(HandOff.from_bytes(data)))
    assert torch.equal(on_device.latents, denoise(tiny_pipeline.unet, member).latents)


def test_jobs_drawn_differently_do_not_share(tiny_pipeline: Any) -> None:
    wrong = [picture(tiny_pipeline), picture(tiny_pipeline, steps=5)]
    begun = [picture(tiny_pipeline), denoise(tiny_pipeline.unet, picture(tiny_pipeline), 1)]
    for jobs in (wrong, begun):
        with pytest.raises(ValueError, match="before their first step"):
            denoise_group(tiny_pipeline.unet, jobs, 2)
    with pytest.raises(ValueError, match="lead='all'"):
        denoise_group(tiny_pipeline.unet, wrong, 2, lead="all")
    with pytest.raises(ValueError, match="no mean"):
        mean_conditions([])


def test_a_prompt_is_a_direction_and_the_empty_one_has_none(tiny_pipeline: Any) -> None:
    embed = prompt_embedder("text_encoder")
    first, same, other, empty = (
        embed(prompt, picture(tiny_pipeline, prompt=prompt).conditions or {})
        for prompt in ("a red seven", "a red seven", "a blue six", "")
    )
    assert np.array_equal(first, same) and not np.allclose(first, other) and empty is None
    assert text_encoder_embedding(picture(tiny_pipeline, guidance=1.0).conditions or {}).shape == first.shape


@pytest.mark.parametrize("name", ["", "none", "sentence-transformers:"])
def test_an_unknown_embedding_is_refused(name: str) -> None:
    with pytest.raises(EmbeddingError, match="is not known"):
        prompt_embedder(name)


def test_a_sentence_transformer_that_is_not_here_says_what_to_do() -> None:
    with pytest.raises(EmbeddingError, match=r"pip install|cannot be loaded"):
        prompt_embedder("sentence-transformers:no-such-model")


def at(pipe: Any, step: int, seed: int = 0) -> Any:
    return denoise(pipe.unet, picture(pipe, seed), step)


def test_the_cache_gives_the_farthest_job_that_the_similarity_may_share(tiny_pipeline: Any) -> None:
    cache = LatentCache(1 << 20)
    for step in (1, 2, 3):
        assert cache.put(WAY, ONES, at(tiny_pipeline, step))
    near = np.array([0.8, 0.6])
    for most, until, step in [(3, 4, 3), (2, 4, 2), (3, 1, 1)]:
        hit = cache.find(WAY, near, lambda s, most=most: most if s > 0.7 else 0, until)
        assert hit is not None and hit.step == step and hit.similarity == pytest.approx(0.8)
        assert hit.job.conditions is None
    assert cache.find(WAY, near, lambda s: 4 if s > 0.9 else 0, 4) is None
    assert cache.find(Way("other", WAY.rest), ONES, lambda s: 4, 4) is None
    assert cache.find(Way("digest", ("DDIM", 5)), ONES, lambda s: 4, 4) is None
    assert cache.stats() | {"bytes": 0} == {
        "entries": 3, "bytes": 0, "hits": 3, "misses": 3, "evictions": 0, "steps_saved": 6
    }  # fmt: skip


def test_what_comes_from_the_cache_is_a_copy(tiny_pipeline: Any) -> None:
    cache = LatentCache(1 << 20)
    given = at(tiny_pipeline, 2)
    conditions = given.conditions
    cache.put(WAY, ONES, given)
    for _ in range(2):
        hit = cache.find(WAY, ONES, lambda s: 4, 4)
        assert hit is not None
        hit.job.conditions = conditions
        assert torch.equal(denoise(tiny_pipeline.unet, hit.job).latents, lone(tiny_pipeline, seed=0))


def test_the_cache_keeps_within_its_bytes_and_drops_the_least_benefit(tiny_pipeline: Any) -> None:
    one = size_bytes(at(tiny_pipeline, 1)) + ONES.nbytes
    cache = LatentCache(2 * one)
    for step in (1, 3, 2):
        cache.put(WAY, ONES, at(tiny_pipeline, step))
        assert cache.stats()["bytes"] <= 2 * one
    assert cache.stats()["evictions"] == 1
    for step, there in ((1, False), (2, True), (3, True)):
        hit = cache.find(WAY, ONES, lambda s: 4, step)
        assert (hit is not None and hit.step == step) == there
    assert not LatentCache(0).put(WAY, ONES, at(tiny_pipeline, 1))
    with pytest.raises(ValueError, match="max_bytes=-1"):
        LatentCache(-1)


def test_what_is_used_stays_and_what_was_used_long_ago_goes(tiny_pipeline: Any) -> None:
    one = size_bytes(at(tiny_pipeline, 1)) + ONES.nbytes
    cache, used, other = LatentCache(2 * one), np.array([1.0, 0.0]), np.array([0.0, 1.0])
    cache.put(WAY, used, at(tiny_pipeline, 1))
    cache.find(WAY, used, lambda s: 4 if s > 0.9 else 0, 4)
    for angle in range(1, 12):
        cache.put(WAY, np.array([np.cos(2 + angle / 8), np.sin(2 + angle / 8)]), at(tiny_pipeline, 1))
        if angle == 2:
            assert cache.find(WAY, used, lambda s: 4 if s > 0.99 else 0, 4) is not None
    assert cache.find(WAY, used, lambda s: 4 if s > 0.99 else 0, 4) is None
    assert cache.find(WAY, other, lambda s: 4 if s > 0.9999999 else 0, 4) is None


def test_a_new_checkpoint_takes_the_old_ones_latents_along(tiny_pipeline: Any) -> None:
    cache = LatentCache(1 << 20)
    cache.put(WAY, ONES, at(tiny_pipeline, 1))
    cache.put(Way("new", WAY.rest), ONES, at(tiny_pipeline, 1))
    assert cache.forget("digest") == 1 and cache.forget("digest") == 0
    assert cache.find(WAY, ONES, lambda s: 4, 4) is None
    assert cache.find(Way("new", WAY.rest), ONES, lambda s: 4, 4) is not None
    assert cache.forget("new") == 1 and cache.stats()["bytes"] == 0


def test_no_words_get_a_second_picture_of_a_run_that_says_so(tiny_pipeline: Any) -> None:
    cache, taken = LatentCache(1 << 20), {"red"}
    for step in (1, 2):
        cache.put(WAY, ONES, at(tiny_pipeline, step), taken)
    assert cache.find(WAY, ONES, lambda s: 4, 4, words="red") is None
    found = cache.find(WAY, ONES, lambda s: 4, 4, words="blue")
    assert found is not None and found.step == 2
    assert cache.find(WAY, ONES, lambda s: 4, 4, words="blue") is None  # not of an earlier step either
    cache.put(WAY, ONES, at(tiny_pipeline, 2), {"red"})  # a newer run stands for an older one of the same prompt
    assert cache.find(WAY, ONES, lambda s: 4, 4, words="blue") is not None
    assert cache.stats()["entries"] == 2
    assert cache.find(WAY, ONES, lambda s: 4, 4, words="green", least=3) is None
