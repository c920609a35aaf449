"""What a device does beside its steps: doing without, deciding, counting, and giving up."""

from __future__ import annotations

import asyncio
import json
from collections import namedtuple
from pathlib import Path
from typing import Any

import diffusers
import httpx
import psutil
import pytest
import torch

from fedkd.planning.system import Device
from fedkd.serving.device import AsyncEdgeClient, EdgeClient, EdgeError
from tests.serving.edges import relay

T = 4
PLAN: dict[str, Any] = {"num_inference_steps": T, "seed": 5, "guidance_scale": 2.0}


@pytest.fixture(scope="module")
def cache(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """One cache of the model for all tests here."""
    torch.set_num_threads(1)
    return tmp_path_factory.mktemp("cache")


@pytest.fixture(scope="module")
def expected(edge_url: str, cache: Path) -> bytes:
    """The picture as the edge alone draws it."""
    with EdgeClient(edge_url, cache_dir=cache) as client:
        return client.generate("a red seven", **PLAN, device_steps=0).image.tobytes()


def test_a_device_without_memory_leaves_all_to_the_edge(
    edge_url: str, cache: Path, expected: bytes, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(psutil, "virtual_memory", lambda: namedtuple("Memory", "available")(1000))
    heard: list[str] = []
    with EdgeClient(edge_url, cache_dir=cache) as client:
        for decode in ("edge", "device"):
            result = client.generate("a red seven", **PLAN, device_steps=3, decode=decode, notice=heard.append)
            assert result.image.tobytes() == expected
            assert (result.device_steps, result.edge_steps, result.decoded_by) == (0, T, "edge")
            assert "MB" in result.notes[0] and "the edge does the device's part" in heard[0]


def test_a_device_that_does_not_know_the_denoiser_leaves_all_to_the_edge(
    edge_url: str, cache: Path, expected: bytes
) -> None:
    def strange(model: dict[str, Any]) -> dict[str, Any]:
        return model | {"classes": model["classes"] | {"unet": "Kandinsky3UNet"}}

    with relay(edge_url, describes=strange) as edge, EdgeClient(edge.url, cache_dir=cache) as client:
        for steps in (2, "auto"):
            result = client.generate("a red seven", **PLAN, device_steps=steps)
            assert result.image.tobytes() == expected and result.device_steps == 0
            assert "UNet2DConditionModel" in result.notes[0]


@pytest.mark.parametrize("order", ["device_first", "edge_first"])
def test_a_device_that_fails_in_its_steps_leaves_them_to_the_edge(
    edge_url: str, cache: Path, expected: bytes, order: Any
) -> None:
    with EdgeClient(edge_url, cache_dir=cache) as client:
        client.prepare()
        ours = client._side.local._loaded["unet"]
        weight = ours.conv_in.weight.detach().clone()
        with torch.no_grad():
            ours.conv_in.weight.fill_(float("nan"))
        result = client.generate("a red seven", **PLAN, device_steps=2, order=order)
        assert result.image.tobytes() == expected and result.device_steps == 0
        assert "not finite" in result.notes[0]
        with torch.no_grad():
            ours.conv_in.weight.copy_(weight)
        assert client.generate("a red seven", **PLAN, device_steps=2, order=order).device_steps == 2


def test_a_picture_kept_from_the_edge_is_never_left_to_it(
    edge_url: str, cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(psutil, "virtual_memory", lambda: namedtuple("Memory", "available")(1000))
    with EdgeClient(edge_url, cache_dir=cache) as client, pytest.raises(EdgeError, match="give decode=edge"):
        client.generate("a", **PLAN, device_steps=2, order="edge_first", decode="device")


def test_a_smaller_denoiser_of_the_same_latents_does_the_devices_steps(
    edge_url: str, tiny_pipeline: Any, tiny_folder: Path, cache: Path, tmp_path: Path, expected: bytes
) -> None:
    config = dict(tiny_pipeline.unet.config) | {"block_out_channels": (8, 16)}
    folder = tmp_path / "student"
    tiny_pipeline.save_pretrained(str(folder))
    torch.manual_seed(1)
    diffusers.UNet2DConditionModel.from_config(config).save_pretrained(str(folder / "unet"))
    with EdgeClient(edge_url, cache_dir=cache, device_checkpoint=folder) as client:
        result = client.generate("a red seven", **PLAN, device_steps=2)
        assert result.device_checkpoint == "student" and result.image.tobytes() != expected
        assert client.generate("a red seven", **PLAN, device_steps=0).device_checkpoint == ""
        reasons = client.generate("a red seven", **PLAN, device_steps="auto").reasons
        assert any("a step of the device's own student is" in reason for reason in reasons)
    (folder / "vae" / "config.json").write_text(json.dumps(dict(tiny_pipeline.vae.config) | {"scaling_factor": 1.0}))
    with (
        EdgeClient(edge_url, cache_dir=cache, device_checkpoint=folder) as client,
        pytest.raises(ValueError, match=r"scaling_factor=1\.0, the edge's 0\.18215"),
    ):
        client.generate("a", **PLAN, device_steps=2)
    with pytest.raises(ValueError, match=r"no model_index\.json"):
        EdgeClient(edge_url, device_checkpoint=tmp_path)


def test_auto_asks_the_planner_and_says_why(edge_url: str, cache: Path, expected: bytes) -> None:
    thrifty = Device("thrifty", 1e15, 0.1)
    with EdgeClient(edge_url, cache_dir=cache, device_profile=thrifty) as client:
        client.prepare()
        result = client.generate("a red seven", **PLAN, device_steps="auto", delay_limit_s=1e6)
        assert result.device_steps == T and result.image.tobytes() == expected
        assert any("least energy" in why for why in result.reasons)
        assert any("measured" in why for why in result.reasons)
    costly = Device("costly", 1e15, 1e6)
    with EdgeClient(edge_url, cache_dir=cache, device_profile=costly) as client:
        assert client.generate("a", **PLAN, device_steps="auto").device_steps == 0
        with pytest.raises(ValueError, match="did you mean"):
            client.generate("a", device_steps="auto", scheduler="DDIMSchedule")


def test_joules_are_watts_times_seconds(edge_url: str, cache: Path) -> None:
    profiles = {"device_profile": Device("d", 1.0, 3.0), "edge_profile": Device("e", 1.0, 7.0)}
    with EdgeClient(edge_url, cache_dir=cache, **profiles) as client:
        result = client.generate("a", **PLAN, device_steps=2)
    assert result.device_energy_j == 3.0 * result.device_seconds > 0
    assert result.edge_energy_j == 7.0 * result.edge_seconds > 0


@pytest.mark.parametrize("wire", ["fp16", "uint8", "uint8_protected"])
def test_latents_travel_in_the_form_that_was_asked_for(edge_url: str, cache: Path, expected: bytes, wire: Any) -> None:
    with EdgeClient(edge_url, cache_dir=cache) as client:
        exact = client.generate("a red seven", **PLAN, device_steps=2)
        lossy = client.generate("a red seven", **PLAN, device_steps=2, wire=wire)
    assert exact.exact is True and exact.image.tobytes() == expected
    assert lossy.wire == wire and lossy.exact is False
    assert exact.latents is not None and lossy.latents is not None
    assert 0 < float((exact.latents - lossy.latents).abs().max()) < 0.5


def test_an_error_in_the_callers_progress_is_the_callers(edge_url: str, cache: Path) -> None:
    class Enough(RuntimeError):
        pass

    def stop(done: int, _: int) -> None:
        if done == 1:
            raise Enough

    with relay(edge_url) as edge, EdgeClient(edge.url, cache_dir=cache) as client:
        with pytest.raises(Enough):
            client.generate("a", **PLAN, device_steps=3, progress=stop)
        assert edge.seen[-1].startswith("DELETE /v1/sessions/")


def test_a_cancelled_picture_ends_its_session(edge_url: str, cache: Path) -> None:
    async def give_up() -> list[str]:
        begun = asyncio.Event()
        loop = asyncio.get_running_loop()
        with relay(edge_url) as edge:
            async with AsyncEdgeClient(edge.url, cache_dir=cache) as client:
                asked = asyncio.create_task(
                    client.generate(
                        "a",
                        num_inference_steps=200,
                        device_steps=200,
                        progress=lambda *_: loop.call_soon_threadsafe(begun.set),
                    )
                )
                await begun.wait()
                asked.cancel()
                with pytest.raises(asyncio.CancelledError):
                    await asked
                return edge.seen

    assert asyncio.run(give_up())[-1].startswith("DELETE /v1/sessions/")


def test_the_edges_steps_are_heard_of_while_it_does_them(edge_url: str, cache: Path) -> None:
    for order in ("device_first", "edge_first"):
        seen: list[int] = []
        with EdgeClient(edge_url, cache_dir=cache) as client:
            client.generate(
                "a",
                num_inference_steps=120,
                device_steps=1,
                order=order,
                progress=lambda done, _, s=seen: s.append(done),
            )
        between = range(2, 119)
        assert any(done in between for done in seen), seen
        assert seen == sorted(seen) and seen[-1] == 120


def test_the_async_client_draws_the_same_picture(edge_url: str, cache: Path, expected: bytes) -> None:
    async def draw() -> Any:
        async with AsyncEdgeClient(edge_url, cache_dir=cache) as client:
            assert (await client.model())["digest"] and await client.same_build()
            return await client.generate("a red seven", **PLAN, device_steps=2, decode="device")

    assert asyncio.run(draw()).image.tobytes() == expected


@pytest.mark.parametrize(
    ("settings", "named"),
    [({"url": "edge:8765"}, "not a URL"), ({}, "not a URL"), ({"url": "http://a", "dtype": "int8"}, "dtype='int8'")],
)
def test_wrong_settings_are_named(settings: dict[str, Any], named: str) -> None:
    with pytest.raises(EdgeError, match=named):
        EdgeClient(**settings)


def test_a_server_that_is_no_edge_is_told_from_one(edge_url: str, cache: Path) -> None:
    assert httpx.get(f"{edge_url}/nowhere/v1/model", trust_env=False).status_code == 404
    with EdgeClient(f"{edge_url}/nowhere", cache_dir=cache) as client, pytest.raises(EdgeError, match="refuses"):
        client.generate("a", device_steps=1)
