"""A condition steers a picture at the edge and split, bit for bit as in diffusers' own ControlNet pipeline."""

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
from diffusers import ControlNetModel, DDIMScheduler, DiffusionPipeline, StableDiffusionControlNetPipeline
from PIL import Image

from fedkd.data.condition_bytes import arrived, pack
from fedkd.data.condition_maps import canny
from fedkd.data.digits import handwriting, render
from fedkd.models.controlnet_folder import save_controlnet
from fedkd.models.source import ModelError
from fedkd.serving.device import EdgeClient, EdgeError
from fedkd.serving.edge import create_app
from fedkd.serving.split_request import Condition
from tests.serving.running import error_of, running

T, SIZE = 4, (32, 32)
FORM = "multipart/form-data; boundary=x"
PROMPT = "a red seven"


def digit(number: int) -> Image.Image:
    return render(handwriting("judge")[0][number], "red", "blue", 128)


def png(image: Image.Image) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, "PNG")
    return buffer.getvalue()


@pytest.fixture(scope="module")
def controlnet(tiny_pipeline: Any, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A ControlNet of the tiny model whose zero convolutions are not zero any more."""
    torch.manual_seed(1)
    net = ControlNetModel.from_unet(tiny_pipeline.unet, conditioning_embedding_out_channels=(8, 16, 16))
    for name, weight in net.named_parameters():
        if "controlnet" in name:
            torch.nn.init.normal_(weight, std=0.3)
    folder = tmp_path_factory.mktemp("controlnets") / "canny"
    net.save_pretrained(str(folder), safe_serialization=True)
    return folder


@pytest.fixture(scope="module")
def app(tiny_folder: Path, controlnet: Path) -> Any:
    torch.set_num_threads(1)
    return create_app(str(tiny_folder), name="tiny", num_inference_steps=T, controlnets=[f"canny={controlnet}"])


@pytest.fixture(scope="module")
def http(app: Any) -> Iterator[httpx.Client]:
    with running(app) as client:
        yield client


@pytest.fixture(scope="module")
def reference(tiny_folder: Path, controlnet: Path) -> Any:
    """draw(condition, seed) by diffusers' own pipeline, nothing of ours in it."""
    pipe: Any = DiffusionPipeline.from_pretrained(str(tiny_folder), local_files_only=True)
    net = ControlNetModel.from_pretrained(str(controlnet), use_safetensors=True)
    steered: Any = StableDiffusionControlNetPipeline.from_pipe(pipe, controlnet=net)
    steered.scheduler = DDIMScheduler.from_config(pipe.scheduler.config)
    steered.set_progress_bar_config(disable=True)

    def draw(condition: Image.Image, seed: int = 5, output_type: str = "pil") -> Any:
        return steered(
            PROMPT,
            image=condition,
            num_inference_steps=T,
            guidance_scale=2.0,
            output_type=output_type,
            generator=torch.Generator("cpu").manual_seed(seed),
        ).images

    return draw


@pytest.fixture(scope="module")
def device(http: httpx.Client, tmp_path_factory: pytest.TempPathFactory) -> Iterator[EdgeClient]:
    with EdgeClient(str(http.base_url).rstrip("/"), cache_dir=tmp_path_factory.mktemp("cache")) as client:
        yield client


@pytest.mark.parametrize("order", ["device_first", "edge_first"])
def test_every_split_equals_the_unsplit_controlnet_pipeline(device: EdgeClient, reference: Any, order: Any) -> None:
    condition = Condition("canny", digit(0), resolution=0.5, level=0.5)
    received = arrived(condition.packed(SIZE), SIZE)
    picture, latents = reference(received)[0], reference(received, output_type="latent")
    for device_steps in (0, 1, T // 2, T - 1, T):
        found = device.generate(
            PROMPT, device_steps=device_steps, order=order, seed=5, num_inference_steps=T, condition=condition
        )
        assert found.latents is not None and torch.equal(found.latents, latents), device_steps
        assert found.image.tobytes() == picture.tobytes()
        assert (found.condition, found.exact, found.device_steps) == ("canny", True, device_steps)
        assert 0 < found.condition_bytes < 400
    assert found.image.tobytes() != device.generate(PROMPT, seed=5, num_inference_steps=T).image.tobytes()


def test_a_condition_crosses_small_and_no_pixels_of_it_come_back(device: EdgeClient) -> None:
    facts: dict[str, Any] = {"device_steps": 2, "seed": 5, "num_inference_steps": T, "order": "edge_first"}
    plain = device.generate(PROMPT, **facts)
    steered = device.generate(PROMPT, condition=Condition("canny", digit(0)), **facts)
    assert steered.bytes_up - plain.bytes_up < 2 * steered.condition_bytes + 100
    assert steered.bytes_down - plain.bytes_down < 200


def edit(http: httpx.Client, image: bytes = b"", files: Any = None, **fields: Any) -> httpx.Response:
    sent = files if files is not None else {"image": ("photo.png", image, "image/png")}
    return http.post("/v1/images/edits", data={"prompt": PROMPT, "seed": "5", **fields}, files=sent)


def opened(answer: httpx.Response) -> Image.Image:
    assert answer.status_code == 200, answer.text
    return Image.open(io.BytesIO(base64.b64decode(answer.json()["data"][0]["b64_json"]))).convert("RGB")


def test_openais_own_client_edits_and_streams(http: httpx.Client, reference: Any) -> None:
    client = openai.OpenAI(base_url=f"{http.base_url}/v1", api_key="none", max_retries=0)
    source = io.BytesIO(png(digit(1).resize(SIZE)))
    source.name = "photo.png"
    extra = {"seed": 5, "exact": True}
    answer = client.images.edit(image=source, prompt=PROMPT, model="tiny", n=1, size="auto", extra_body=extra)
    assert answer.data and answer.data[0].b64_json
    made = Image.open(io.BytesIO(base64.b64decode(answer.data[0].b64_json)))
    assert made.tobytes() == reference(canny(digit(1).resize(SIZE)))[0].tobytes()
    source.seek(0)
    events = list(client.images.edit(image=source, prompt=PROMPT, stream=True, partial_images=1, extra_body=extra))
    assert [event.type for event in events] == ["image_edit.partial_image", "image_edit.completed"]
    with pytest.raises(openai.BadRequestError) as raised:
        client.images.edit(image=io.BytesIO(b"none"), prompt=PROMPT)
    assert (raised.value.param, raised.value.code) == ("image", "invalid_image")


def test_an_extracted_condition_is_used_as_it_is(http: httpx.Client, reference: Any) -> None:
    condition = pack(canny(digit(2).resize(SIZE))).data
    made = opened(edit(http, condition, condition="canny", extracted="true", exact="true"))
    assert made.tobytes() == reference(arrived(condition, SIZE))[0].tobytes()


def test_nobody_gets_anothers_condition_or_picture(http: httpx.Client, device: EdgeClient, app: Any) -> None:
    def one(number: int) -> Image.Image:
        if number % 3 == 2:  # and some that nothing steers
            body = {"prompt": PROMPT, "seed": 5 + number}
            return opened(http.post("/v1/images/generations", json=body))
        return opened(edit(http, png(digit(number)), seed=str(5 + number)))

    numbers = range(12)
    alone = [one(number) for number in numbers]
    before = app.state.edge.steps.stats()
    with ThreadPoolExecutor(12) as pool:
        together = list(pool.map(one, numbers))
    after = app.state.edge.steps.stats()
    assert after["forwards"] - before["forwards"] < 12 * T  # they did share forwards
    for number in numbers:
        gaps = [difference(together[number], other) for other in alone]
        assert gaps[number] <= 1 < min(gap for place, gap in enumerate(gaps) if place != number)


def difference(one: Image.Image, other: Image.Image) -> int:
    """The largest difference of two pictures, 0 to 255."""
    from PIL import ImageChops

    return max(high for _, high in ImageChops.difference(one, other).getextrema())


def test_what_cannot_be_is_one_error_in_openais_form(http: httpx.Client) -> None:
    from tests.data.test_conditions import bomb

    source = png(digit(0))
    for answer, status, param, code in [
        (edit(http, b"no picture"), 400, "image", "invalid_image"),
        (edit(http, bomb(10_000, 10_000)), 413, "image", "too_many_pixels"),
        (edit(http, source[:200]), 400, "image", "truncated_image"),
        (edit(http, source, condition="depth"), 400, "condition", "condition_not_supported"),
        (edit(http, source, size="64x64"), 400, "size", "invalid_value"),
        (edit(http, source, n="0"), 422, "n", "invalid_value"),
        (edit(http, source, control_scale="7"), 422, "control_scale", "invalid_value"),
        (edit(http, source, scheduler_options="{"), 400, "scheduler_options", "invalid_value"),
        (edit(http, files={"other": ("a.png", source)}), 400, "image", "missing_image"),
        (edit(http, files=[("image[]", ("a.png", source)), ("image[]", ("b.png", source))]), 400, "image",
         "too_many_images"),
        (edit(http, files={"image": ("a.png", source), "mask": ("m.png", source)}), 400, "mask", "unsupported"),
        (http.post("/v1/images/edits", json={"prompt": PROMPT}), 400, None, "malformed_form"),
        (edit(http, source, prompt="a" * 70_000), 400, None, "malformed_form"),
        (http.post("/v1/images/edits", content=b"--x\r\n\r\n--x--", headers={"Content-Type": FORM}), 400, None,
         "malformed_form"),
        (http.post("/v1/images/edits", content=b"junk--", headers={"Content-Type": FORM}), 400, None, "malformed_form"),
        (http.post("/v1/images/edits", content=b"--", headers={"Content-Type": "multipart/form-data"}), 400, None,
         "malformed_form"),
        (http.post("/v1/images/edits", content=b"--x\r\n", headers={"Content-Type": FORM}), 400, None,
         "malformed_form"),
    ]:  # fmt: skip
        error = error_of(answer)
        assert (answer.status_code, error["param"], error["code"]) == (status, param, code), error


@pytest.mark.parametrize(
    ("condition", "status", "param", "code"),
    [
        ({"kind": "depth", "image": "aaaa"}, 400, "condition.kind", "condition_not_supported"),
        ({"kind": "canny", "image": "?"}, 400, "condition.image", "invalid_image"),
        ({"kind": "canny", "image": "aaaa"}, 400, "condition.image", "invalid_image"),
        ({"kind": "canny", "image": "a" * 1_500_000}, 413, "condition.image", "image_too_large"),
        ({"kind": "canny", "image": "aaaa", "scale": -1}, 422, "condition.scale", "invalid_value"),
        ({"kind": "canny"}, 422, "condition.image", "invalid_value"),
    ],
)
def test_a_session_refuses_a_condition_that_is_none(
    http: httpx.Client, app: Any, condition: Any, status: int, param: str, code: str
) -> None:
    answer = http.post("/v1/sessions", json={"prompt": PROMPT, "condition": condition})
    error = error_of(answer)
    assert (answer.status_code, error["param"], error["code"]) == (status, param, code)
    assert len(app.state.edge.sessions) == 0


def test_a_model_without_a_controlnet_says_so(tiny_folder: Path) -> None:
    with running(create_app(str(tiny_folder), name="tiny", num_inference_steps=T)) as bare:
        assert error_of(edit(bare, png(digit(0))))["code"] == "no_controlnet"
        with EdgeClient(str(bare.base_url).rstrip("/")) as device, pytest.raises(EdgeError, match="has no ControlNet"):
            device.generate(PROMPT, condition=Condition("canny", digit(0)))


def test_a_controlnet_is_checked_before_it_is_served(tiny_folder: Path, controlnet: Path, tmp_path: Path) -> None:
    other = ControlNetModel(block_out_channels=(8, 8), down_block_types=("DownBlock2D",) * 2, norm_num_groups=4,
                            conditioning_embedding_out_channels=(8, 8))  # fmt: skip
    save_controlnet(other, tmp_path / "other", "canny", {})
    save_controlnet(other, tmp_path / "changed", "canny", {})
    weights = tmp_path / "changed" / "diffusion_pytorch_model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-1] + b"x")
    for given, said in [
        (str(controlnet), "does not say its condition"),
        (f"cany={controlnet}", "no condition 'cany'"),
        ("canny=nowhere", "no folder 'nowhere'"),
        (str(tmp_path / "other"), "was made for none of tiny"),
        (f"depth={tmp_path / 'other'}", "it is steered by canny, not depth"),
        (str(tmp_path / "changed"), "pins"),
    ]:
        with pytest.raises(ModelError, match=said):
            create_app(str(tiny_folder), name="tiny", controlnets=[given])
