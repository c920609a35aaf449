"""OpenAI's own client draws at the edge, streams partial images, and understands its errors."""

from __future__ import annotations

import base64
import io
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import httpx
import openai
import pytest
import torch
from PIL import Image

from fedkd.serving.edge import create_app
from fedkd.serving.routes_images import partial_steps
from tests.serving.running import running, until


@pytest.fixture(scope="module")
def app(tiny_folder: Path) -> Any:
    return create_app(str(tiny_folder), name="tiny", num_inference_steps=4)


@pytest.fixture(scope="module")
def http(app: Any) -> Iterator[httpx.Client]:
    with running(app) as client:
        yield client


@pytest.fixture(scope="module")
def client(http: httpx.Client) -> openai.OpenAI:
    return openai.OpenAI(base_url=f"{http.base_url}/v1", api_key="none", max_retries=0)


def opened(data: str | None) -> Image.Image:
    image = Image.open(io.BytesIO(base64.b64decode(data or "")))
    image.load()
    return image


def test_models_are_listed_and_found(client: openai.OpenAI) -> None:
    assert [model.id for model in client.models.list()] == ["tiny"]
    assert client.models.retrieve("tiny").owned_by == "fedkd"
    with pytest.raises(openai.NotFoundError):
        client.models.retrieve("none")


@pytest.mark.parametrize("partial_images", [0, 1, 3])
def test_a_picture_is_streamed_with_its_partial_images(
    client: openai.OpenAI, tiny_pipeline: Any, partial_images: int
) -> None:
    stream = client.images.generate(
        prompt="a red seven", model="tiny", stream=True, partial_images=partial_images, extra_body={"seed": 5}
    )
    events = list(stream)
    kinds = ["image_generation.partial_image"] * partial_images + ["image_generation.completed"]
    assert [event.type for event in events] == kinds
    assert [event.partial_image_index for event in events[:-1]] == list(range(partial_images))
    expected = tiny_pipeline(
        "a red seven", num_inference_steps=4, guidance_scale=2.0, generator=torch.Generator().manual_seed(5)
    ).images[0]
    assert opened(events[-1].b64_json).tobytes() == expected.tobytes()
    assert all(opened(event.b64_json).size == (32, 32) and event.size == "32x32" for event in events)


def test_several_pictures_are_streamed_at_once(client: openai.OpenAI) -> None:
    events = list(client.images.generate(prompt="a", n=3, stream=True, partial_images=1, extra_body={"seed": 1}))
    assert sorted(event.type.rpartition(".")[2] for event in events) == ["completed"] * 3 + ["partial_image"] * 3


@pytest.mark.parametrize("form", ["png", "jpeg", "webp"])
def test_pictures_come_in_the_format_asked_for(client: openai.OpenAI, form: Any) -> None:
    answer = client.images.generate(prompt="a", output_format=form, output_compression=50)
    assert answer.data is not None and opened(answer.data[0].b64_json).format == form.upper()


@pytest.mark.parametrize(
    ("changes", "error", "param"),
    [
        ({"model": "dall-e-3", "stream": True}, openai.NotFoundError, "model"),
        ({"output_format": "gif"}, openai.BadRequestError, "output_format"),
        ({"partial_images": 2}, openai.BadRequestError, "partial_images"),
        ({"extra_body": {"scheduler": "None"}, "stream": True}, openai.UnprocessableEntityError, "scheduler"),
        ({"extra_body": {"deadline_s": 0.001}}, openai.InternalServerError, "deadline_s"),
    ],
)
def test_openais_client_raises_its_own_errors(
    client: openai.OpenAI, changes: dict[str, Any], error: type[openai.APIStatusError], param: str
) -> None:
    with pytest.raises(error) as raised:
        client.images.generate(prompt="a", **changes)
    assert raised.value.param == param


def test_a_failure_in_mid_stream_is_an_error_of_openais_client(client: openai.OpenAI) -> None:
    late = {"num_inference_steps": 1000, "deadline_s": 0.5}
    with pytest.raises(openai.APIError, match="deadline_s"):
        list(client.images.generate(prompt="a", stream=True, extra_body=late))


def test_many_at_once_share_forwards_and_get_their_own_pictures(app: Any, http: httpx.Client) -> None:
    def draw(seed: int, **changes: Any) -> Image.Image:
        body = {"prompt": f"a {seed}", "seed": seed, "num_inference_steps": 3 + seed} | changes
        return opened(http.post("/v1/images/generations", json=body).json()["data"][0]["b64_json"])

    alone = [draw(seed, exact=True) for seed in range(6)]
    with ThreadPoolExecutor(6) as pool:
        together = list(pool.map(draw, range(6)))
    for one, other in zip(alone, together, strict=True):
        pixels = [torch.tensor(list(image.tobytes()), dtype=torch.int16) for image in (one, other)]
        assert (pixels[0] - pixels[1]).abs().max() <= 1
    assert until(lambda: not any(users for _, users in app.state.edge.models.users()))


def test_limits_of_a_token_reach_openais_client(tiny_folder: Path, tmp_path: Path) -> None:
    tokens = tmp_path / "tokens.yaml"
    tokens.write_text("tokens: [{name: ann, token: a, requests_per_minute: 1}]")
    with running(create_app(str(tiny_folder), tokens=str(tokens), num_inference_steps=1)) as http:
        client = openai.OpenAI(base_url=f"{http.base_url}/v1", api_key="a", max_retries=0)
        assert client.images.generate(prompt="a").data
        with pytest.raises(openai.RateLimitError) as refused:
            client.images.generate(prompt="a")
        assert 1 <= int(refused.value.response.headers["Retry-After"]) <= 60
        stranger = openai.OpenAI(base_url=f"{http.base_url}/v1", api_key="b", max_retries=0)
        with pytest.raises(openai.AuthenticationError):
            stranger.images.generate(prompt="a")


@pytest.mark.parametrize(
    ("total", "count", "steps"),
    [(4, 3, {1, 2, 3}), (4, 1, {2}), (2, 3, {1}), (1, 3, set()), (20, 2, {7, 13}), (9, 0, set())],
)
def test_partial_images_are_spread_over_the_steps(total: int, count: int, steps: set[int]) -> None:
    assert partial_steps(total, count) == steps
