"""An edge that shares steps: who may, who never does, and that everybody gets the picture of its own prompt."""

from __future__ import annotations

import base64
import io
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pytest
from PIL import Image

from fedkd.inference.denoiser import decode, denoise, encode, start
from fedkd.inference.handoff import HandOff
from fedkd.inference.shared_steps import fork
from fedkd.planning.machines import PlanningError
from fedkd.planning.sharing_policy import SharingProfile
from fedkd.serving.edge import create_app
from tests.serving.running import running, stepped

TOTAL, SHARED = 4, 2
PATH = "/v1/images/generations"


@pytest.fixture(scope="module")
def profile(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """All prompts may share two of four steps: the worst that could happen to whoever mixes pictures up."""
    path = tmp_path_factory.mktemp("sharing") / "profile.json"
    zero = np.zeros((1, 1))
    SharingProfile((-1.0,), (SHARED,), zero, zero, zero + 100, TOTAL, "DDIMScheduler", 2.0).save(path)
    return path


@pytest.fixture(scope="module")
def http(tiny_folder: Path, profile: Path) -> Iterator[httpx.Client]:
    app = create_app(str(tiny_folder), name="tiny", num_inference_steps=TOTAL, share_profile=str(profile), batch=False)
    with running(app) as client:
        yield client


def shared_by(pipe: Any, leader: str, prompt: str, seed: int) -> Image.Image:
    """The picture of `prompt` forked off `leader`'s at the shared step."""
    facts: dict[str, Any] = {"seed": seed, "num_inference_steps": TOTAL, "guidance_scale": 2.0}
    first = start(pipe, encode(pipe, leader, 2.0), scheduler="DDIMScheduler", **facts)
    denoise(pipe.unet, first, SHARED)
    return decode(pipe.vae, denoise(pipe.unet, fork(first, encode(pipe, prompt, 2.0))).latents)


def drawn(answer: httpx.Response) -> Image.Image:
    assert answer.status_code == 200, answer.text
    return Image.open(io.BytesIO(base64.b64decode(answer.json()["data"][0]["b64_json"])))


def same(a: Image.Image, b: Image.Image) -> bool:
    return a.tobytes() == b.tobytes()


def metric(http: httpx.Client, name: str) -> float:
    lines = [line for line in http.get("/metrics").text.splitlines() if line.startswith(name)]
    return sum(float(line.rsplit(" ", 1)[1]) for line in lines)


def test_a_later_prompt_forks_off_the_cache_and_the_first_is_its_lone_self(
    http: httpx.Client, tiny_pipeline: Any
) -> None:
    before = metric(http, "fedkd_shared_steps_saved_total"), metric(http, "fedkd_latent_cache_hits")
    first = http.post(PATH, json={"prompt": "a red seven", "seed": 11})
    later = http.post(PATH, json={"prompt": "a blue six", "seed": 11})
    assert (first.headers["x-fedkd-shared-steps"], first.headers["x-fedkd-exact"]) == ("0", "true")
    assert (later.headers["x-fedkd-shared-steps"], later.headers["x-fedkd-exact"]) == (str(SHARED), "false")
    assert same(drawn(first), shared_by(tiny_pipeline, "a red seven", "a red seven", 11))
    assert same(drawn(later), shared_by(tiny_pipeline, "a red seven", "a blue six", 11))
    after = metric(http, "fedkd_shared_steps_saved_total"), metric(http, "fedkd_latent_cache_hits")
    assert (after[0] - before[0], after[1] - before[1]) == (SHARED, 1)


@pytest.mark.parametrize(
    "asked", [{"exact": True}, {"num_inference_steps": 5}, {"guidance_scale": 3.0}, {"seed": 13}], ids=str
)
def test_who_asks_for_it_exactly_or_otherwise_shares_nothing(http: httpx.Client, asked: dict[str, Any]) -> None:
    http.post(PATH, json={"prompt": "a red seven", "seed": 12})
    answer = http.post(PATH, json={"prompt": "a blue six", "seed": 12} | asked)
    assert answer.headers["x-fedkd-shared-steps"] == "0" and answer.headers["x-fedkd-exact"] == "true"


def test_at_the_same_time_everybody_gets_the_picture_of_its_own_prompt(http: httpx.Client, tiny_pipeline: Any) -> None:
    prompts = ["a red seven", "a blue six", "a green one", "a white two", "a black three", "an orange four"]

    def ask(prompt: str) -> httpx.Response:
        return http.post(PATH, json={"prompt": prompt, "seed": 21})

    with ThreadPoolExecutor(len(prompts)) as pool:
        answers = list(pool.map(ask, prompts))
    shared = [int(answer.headers["x-fedkd-shared-steps"]) for answer in answers]
    assert sorted(shared) == [0] + [SHARED] * 5
    leader = prompts[shared.index(0)]
    for prompt, answer in zip(prompts, answers, strict=True):
        assert same(drawn(answer), shared_by(tiny_pipeline, leader, prompt, 21)), prompt


def test_without_a_seed_pictures_share_one_noise_and_say_whose(http: httpx.Client, tiny_pipeline: Any) -> None:
    first, later = (http.post(PATH, json={"prompt": each}) for each in ("a red seven", "a blue six"))
    assert later.json()["seed"] == first.json()["seed"]
    assert same(drawn(later), shared_by(tiny_pipeline, "a red seven", "a blue six", first.json()["seed"]))
    several = http.post(PATH, json={"prompt": "a red seven", "n": 2})
    assert several.headers["x-fedkd-shared-steps"] == "0"


def test_without_a_seed_the_same_words_never_get_the_same_picture(http: httpx.Client) -> None:
    words = ("a purple five", "A Purple  FIVE", "an orange zero")  # the model reads the first two alike

    def ask(prompt: str) -> httpx.Response:
        return http.post(PATH, json={"prompt": prompt})

    with ThreadPoolExecutor(6) as pool:  # some find a leader that is being drawn, the later ones the cache
        answers = [answer for _ in range(2) for answer in pool.map(ask, words * 2)]
    pictures = [drawn(answer).tobytes() for answer in answers]
    assert len(set(pictures)) == len(pictures)
    assert sum(int(answer.headers["x-fedkd-shared-steps"]) > 0 for answer in answers) >= 4


def test_the_denoiser_itself_says_what_prompts_mean(tiny_folder: Path, tmp_path: Path) -> None:
    path, zero = tmp_path / "profile.json", np.zeros((1, 1))
    way: tuple[Any, ...] = ((SHARED,), zero, zero, zero + 100, TOTAL, "DDIMScheduler", 2.0, "denoiser")
    SharingProfile((0.999,), *way).save(path)
    app = create_app(str(tiny_folder), num_inference_steps=TOTAL, share_profile=str(path), batch=False)
    with running(app) as http, ThreadPoolExecutor(4) as pool:
        asked = [{"prompt": prompt, "seed": 5} for prompt in ("a red seven", "A red seven", "a red seven", "blue")]
        answers = list(pool.map(lambda each: http.post(PATH, json=each), asked))
        shared = {each["prompt"]: [] for each in asked}
        for each, answer in zip(asked, answers, strict=True):
            shared[each["prompt"]].append(int(answer.headers["x-fedkd-shared-steps"]))
        assert metric(http, "fedkd_sharing_probes_total") == 3  # two prompts and the empty one, each asked once
    assert sorted(shared["a red seven"] + shared["A red seven"]) == [0, SHARED, SHARED] and shared["blue"] == [0]


def test_a_member_of_a_group_finishes_on_its_device(http: httpx.Client, tiny_pipeline: Any) -> None:
    def opened(prompt: str, order: str) -> httpx.Response:
        asked = {"prompt": prompt, "seed": 31, "device_steps": 1, "order": order, "with_conditions": True}
        answer = http.post("/v1/sessions", json=asked)
        assert answer.status_code == 201, answer.text
        return answer

    opened("a red seven", "edge_first")
    member = opened("a blue six", "edge_first")
    assert member.headers["x-fedkd-exact"] == "false" and HandOff.from_bytes(member.content).step == TOTAL - 1
    back = stepped(tiny_pipeline, member.content, 1)
    ended = http.post(f"/v1/sessions/{member.headers['x-fedkd-session']}/handoff", content=back)
    picture = Image.open(io.BytesIO(ended.content))
    assert same(picture, shared_by(tiny_pipeline, "a red seven", "a blue six", 31))
    assert HandOff.from_bytes(opened("a green one", "device_first").content).step == 0


def test_a_leader_that_is_cancelled_leaves_its_group_to_the_next(http: httpx.Client, tiny_pipeline: Any) -> None:
    def ask(prompt: str, deadline_s: float) -> httpx.Response:
        return http.post(PATH, json={"prompt": prompt, "seed": 41, "deadline_s": deadline_s})

    with ThreadPoolExecutor(3) as pool:
        late = pool.submit(ask, "a red seven", 0.001)
        others = [pool.submit(ask, prompt, 60) for prompt in ("a blue six", "a green one")]
    assert late.result().status_code in (200, 504)
    for each in others:
        assert each.result().status_code == 200


def test_openapi_says_what_may_be_asked(http: httpx.Client) -> None:
    schema = http.get("/openapi.json").json()
    assert "any_seed" in schema["components"]["schemas"]["ImageRequest"]["properties"]
    assert "X-Fedkd-Shared-Steps" in schema["paths"][PATH]["post"]["responses"]["200"]["headers"]


def test_an_edge_refuses_a_profile_that_is_none(tiny_folder: Path, tmp_path: Path) -> None:
    with pytest.raises(PlanningError, match="fedkd bench sharing"):
        create_app(str(tiny_folder), share_profile=str(tmp_path / "none.json"))
