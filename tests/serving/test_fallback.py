"""An edge that dies at any moment costs nothing but time: the picture is finished elsewhere, byte for byte."""

from __future__ import annotations

import asyncio
import socket
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import diffusers
import psutil
import pytest
import torch

from fedkd.serving.device import AsyncEdgeClient, EdgeClient, EdgeError, SplitResult
from fedkd.serving.loopback import free_port, serve_in_process
from tests.serving.edges import AFTER, BEFORE, HALFWAY, relay, serve_in_thread

T = 4
PLAN: dict[str, Any] = {"num_inference_steps": T, "seed": 5, "guidance_scale": 2.0}
STOCHASTIC = "EulerAncestralDiscreteScheduler"


@pytest.fixture(scope="module")
def cache(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """One cache of the model for all tests here."""
    torch.set_num_threads(1)
    return tmp_path_factory.mktemp("cache")


@pytest.fixture(scope="module")
def expected(tiny_pipeline: Any) -> bytes:
    """The pixels that the unsplit pipeline draws."""
    return unsplit(tiny_pipeline, STOCHASTIC)


def unsplit(pipe: Any, scheduler: str) -> bytes:
    torch.set_num_threads(1)
    before = pipe.scheduler
    pipe.scheduler = getattr(diffusers, scheduler).from_config(before.config)
    try:
        generator = torch.Generator("cpu").manual_seed(5)
        return pipe("a red seven", num_inference_steps=T, guidance_scale=2.0, generator=generator).images[0].tobytes()
    finally:
        pipe.scheduler = before


@pytest.fixture
def drawn(edge_url: str, cache: Path) -> Any:
    """drawn(relay, **plan): a picture begun at the relay, with the edge itself to fall back to."""

    def draw(first: Any, **plan: Any) -> SplitResult:
        with EdgeClient(edges=[first.url, edge_url], cache_dir=cache, patience_s=5) as client:
            return client.generate("a red seven", **(PLAN | {"scheduler": STOCHASTIC} | plan))

    return draw


@pytest.mark.parametrize("order", ["device_first", "edge_first"])
@pytest.mark.parametrize("when", [BEFORE, AFTER, HALFWAY])
@pytest.mark.parametrize("dies_at", ["GET /v1/model", "POST /v1/sessions", "/handoff"])
def test_an_edge_that_dies_at_a_request_is_replaced(
    drawn: Any, edge_url: str, expected: bytes, dies_at: str, when: str, order: str
) -> None:
    with relay(edge_url, dies_at=dies_at, when=when) as first:
        result = drawn(first, device_steps=2, order=order)
        assert first.dead
        assert result.image.tobytes() == expected
        assert result.edges[-1] == edge_url and (result.device_steps, result.edge_steps) == (2, 2)
        assert len(result.notes) == 1 and "going on" in result.notes[0]
        assert result.edges == ((first.url, edge_url) if dies_at == "/handoff" else (edge_url,))


@pytest.mark.parametrize("order", ["device_first", "edge_first"])
def test_an_edge_that_dies_while_the_device_computes_is_replaced(
    drawn: Any, edge_url: str, expected: bytes, order: str
) -> None:
    with relay(edge_url) as first:
        result = drawn(first, device_steps=3, order=order, progress=lambda done, _: done == 2 and first.die())
        assert first.dead and result.image.tobytes() == expected
        assert result.edges == (first.url, edge_url)


@pytest.mark.parametrize("device_steps", [0, T])
def test_the_ends_of_the_split_survive_too(drawn: Any, edge_url: str, expected: bytes, device_steps: int) -> None:
    with relay(edge_url, dies_at="/handoff") as first:
        assert drawn(first, device_steps=device_steps).image.tobytes() == expected


def test_an_edge_without_resume_takes_the_picture_by_opening_it(edge_url: str, cache: Path, expected: bytes) -> None:
    with (
        relay(edge_url, dies_at="/handoff") as first,
        relay(edge_url, describes=lambda model: model | {"features": []}) as second,
        EdgeClient(first.url, edges=[second.url], cache_dir=cache) as client,
    ):
        for order in ("device_first", "edge_first"):
            result = client.generate("a red seven", **PLAN, scheduler=STOCHASTIC, device_steps=2, order=order)
            assert result.image.tobytes() == expected
        assert "POST /v1/sessions" in second.seen and not any("resume" in line for line in second.seen)


def test_the_second_may_die_as_well(edge_url: str, cache: Path, expected: bytes) -> None:
    with (
        relay(edge_url, dies_at="/handoff") as first,
        relay(edge_url, dies_at="/handoff", when=AFTER) as second,
        EdgeClient(first.url, edges=[second.url, edge_url], cache_dir=cache, patience_s=5) as client,
    ):
        result = client.generate("a red seven", **PLAN, scheduler=STOCHASTIC, device_steps=2)
        assert result.image.tobytes() == expected and result.edges == (first.url, second.url, edge_url)
        again = client.generate("a red seven", **PLAN, scheduler=STOCHASTIC, device_steps=2)
        assert again.edges == (edge_url,) and not again.notes  # it stays with the one that works


def test_a_real_edge_process_killed_in_the_middle_is_replaced(
    tiny_folder: Path, edge_url: str, cache: Path, expected: bytes
) -> None:
    mine = psutil.Process()
    before = {child.pid for child in mine.children()}
    with serve_in_process(str(tiny_folder), name="tiny", threads=1) as first:
        (child,) = (child for child in mine.children() if child.pid not in before)

        def kill(done: int, _: int) -> None:
            if done == 2:
                child.kill()
                child.wait()

        with EdgeClient(first, edges=[edge_url], cache_dir=cache) as client:
            result = client.generate("a red seven", **PLAN, scheduler=STOCHASTIC, device_steps=3, progress=kill)
    assert result.image.tobytes() == expected and result.edges == (first, edge_url)


def test_the_fetch_goes_on_at_the_next_edge(edge_url: str, tmp_path: Path, expected: bytes) -> None:
    with (
        relay(edge_url, dies_at="/v1/components", when=HALFWAY) as first,
        EdgeClient(first.url, edges=[edge_url], cache_dir=tmp_path) as client,
    ):
        assert client.generate("a red seven", **PLAN, scheduler=STOCHASTIC, device_steps=2).image.tobytes() == expected
        sizes = [f["size_bytes"] for f in client.model()["files"] if f["component"] == "unet"]
        assert client.fetched_bytes <= sum(sizes)


def test_a_lost_session_is_gone_on_with_at_the_same_edge(edge_url: str, cache: Path, expected: bytes) -> None:
    with relay(edge_url, refuses=(("/handoff", 500, {}),)) as only, EdgeClient(only.url, cache_dir=cache) as client:
        result = client.generate("a red seven", **PLAN, scheduler=STOCHASTIC, device_steps=2, order="edge_first")
        assert result.image.tobytes() == expected and result.edges == (only.url,)
        assert sum("resume" in line for line in only.seen) == 1


def test_a_busy_edge_is_waited_for_or_passed_over(edge_url: str, cache: Path, drawn: Any, expected: bytes) -> None:
    busy = (("/v1/sessions", 429, {"Retry-After": "0.1"}), ("/handoff", 503, {"Retry-After": "0.1"}))
    with relay(edge_url, refuses=busy) as only, EdgeClient(only.url, cache_dir=cache) as client:
        assert client.generate("a red seven", **PLAN, scheduler=STOCHASTIC, device_steps=2).image.tobytes() == expected
    with relay(edge_url, refuses=busy[:1]) as first:
        assert drawn(first, device_steps=2).edges == (edge_url,)


def test_an_edge_that_never_answers_is_given_up(edge_url: str, cache: Path, expected: bytes) -> None:
    with socket.create_server(("127.0.0.1", 0)) as silent:  # takes connections, and says nothing
        url = f"http://127.0.0.1:{silent.getsockname()[1]}"
        with EdgeClient(url, edges=[edge_url], cache_dir=cache, timeout_s=2.0) as client:
            result = client.generate("a red seven", **PLAN, scheduler=STOCHASTIC, device_steps=2)
    assert result.image.tobytes() == expected and result.edges == (edge_url,)


@pytest.mark.parametrize(
    "change", [{"digest": None}, {"classes": []}, {"resolution": ["x"]}, {"scheduler": {}}, {"files": "no"}]
)
def test_an_edge_that_talks_nonsense_is_passed_over(
    drawn: Any, edge_url: str, expected: bytes, change: dict[str, Any]
) -> None:
    with relay(edge_url, describes=lambda model: model | change) as first:
        result = drawn(first, device_steps=2)
        assert result.image.tobytes() == expected and result.edges == (edge_url,)


def test_when_all_are_dead_every_reason_is_told(cache: Path) -> None:
    urls = [f"http://127.0.0.1:{free_port()}" for _ in range(2)]
    with EdgeClient(edges=urls, cache_dir=cache) as client, pytest.raises(EdgeError, match="none of the 2") as told:
        client.generate("a", device_steps=1)
    assert all(url in str(told.value) for url in urls)


def test_a_request_that_no_edge_can_fulfil_is_not_carried_round(edge_url: str, drawn: Any) -> None:
    with relay(edge_url) as first, pytest.raises(EdgeError, match="give 0 to 4"):
        drawn(first, device_steps=T + 1)
    with relay(edge_url) as first, pytest.raises(EdgeError, match="did you mean"):
        drawn(first, device_steps=1, scheduler="DDIMSchedule")


@pytest.fixture(scope="module")
def other_edge(tiny_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """An edge that serves a model of other weights."""
    folder = tmp_path_factory.mktemp("other") / "model"
    pipe = diffusers.StableDiffusionPipeline.from_pretrained(str(tiny_folder), safety_checker=None)
    with torch.no_grad():
        pipe.unet.conv_in.weight.mul_(1.5)
    pipe.save_pretrained(str(folder), safe_serialization=True)
    with serve_in_thread(str(folder), name="tiny") as url:
        yield url


def test_an_edge_of_another_model_may_begin_a_picture_but_not_go_on_with_one(
    edge_url: str, other_edge: str, cache: Path
) -> None:
    with (
        relay(edge_url, dies_at="/handoff") as first,
        EdgeClient(first.url, edges=[other_edge], cache_dir=cache, patience_s=0) as client,
    ):
        with pytest.raises(EdgeError, match="none of the 2 edges can go on"):
            client.generate("a", **PLAN, device_steps=2)
        assert client.generate("a", **PLAN, device_steps=2).edges == (other_edge,)


@pytest.mark.parametrize("device_steps", [2, "auto"])
def test_a_model_that_the_edge_has_replaced_is_noticed(
    edge_url: str, other_edge: str, cache: Path, tmp_path: Path, device_steps: Any
) -> None:
    with EdgeClient(other_edge, cache_dir=cache) as client:
        after = client.generate("a", **PLAN, device_steps=2).image.tobytes()
    with relay(edge_url) as edge, EdgeClient(edge.url, cache_dir=tmp_path) as client:
        client.model()  # and its files are gone before any is fetched
        edge.switch(other_edge)
        assert client.generate("a", **PLAN, device_steps=device_steps).image.tobytes() == after
        edge.switch(edge_url)
        assert client.generate("a", **PLAN, device_steps=device_steps).image.tobytes() != after
        edge.switch(other_edge)
        result = client.generate("a", **PLAN, device_steps=device_steps, order="edge_first")
        assert result.image.tobytes() == after and not result.notes


def test_the_async_client_falls_back_in_the_same_way(edge_url: str, cache: Path, expected: bytes) -> None:
    async def draw() -> list[SplitResult]:
        with relay(edge_url, dies_at="/handoff", when=HALFWAY) as first:
            async with AsyncEdgeClient(first.url, edges=[edge_url], cache_dir=cache) as client:
                asked = [
                    client.generate("a red seven", **PLAN, scheduler=STOCHASTIC, device_steps=n, order=order)
                    for n, order in ((2, "device_first"), (3, "edge_first"))
                ]
                return await asyncio.gather(*asked)

    results = asyncio.run(draw())
    assert all(result.image.tobytes() == expected for result in results)
    assert any(result.notes for result in results)
