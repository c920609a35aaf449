"""Models are served by name; a new version takes over while what was begun ends on the old one."""

from __future__ import annotations

import asyncio
import gc
import shutil
import weakref
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
import torch
from fastapi.testclient import TestClient
from safetensors.torch import load_file, save_file

from fedkd.checkpoints.cache import CheckpointCache
from fedkd.checkpoints.registry import Registry
from fedkd.inference.step_engine import StepEngine
from fedkd.models.pipeline import load_pipeline
from fedkd.models.source import ModelError
from fedkd.serving.device import AsyncEdgeClient, EdgeClient
from fedkd.serving.edge import create_app
from fedkd.serving.errors import EdgeFault
from fedkd.serving.models import EdgeModels
from fedkd.serving.registry_http import create_registry_app
from fedkd.serving.sources import Brought, CloudSource, FolderSource, RegistrySource
from tests.serving.running import running, stepped, until

PLAN = {"prompt": "a seven", "num_inference_steps": 4, "device_steps": 2, "seed": 3, "exact": True}


@pytest.fixture(scope="module")
def other_folder(tiny_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The tiny model with another UNet."""
    folder = tmp_path_factory.mktemp("models") / "other"
    shutil.copytree(tiny_folder, folder)
    path = folder / "unet" / "diffusion_pytorch_model.safetensors"
    save_file({key: value * 0.9 for key, value in load_file(path).items()}, path)
    return folder


@pytest.fixture
def models() -> Iterator[EdgeModels]:
    steps = StepEngine()
    found = EdgeModels(steps)
    yield found
    steps.close()


def picture(pipe: Any) -> torch.Tensor:
    made = pipe("a seven", num_inference_steps=4, generator=torch.Generator().manual_seed(3), guidance_scale=2.0)
    return made.images[0].tobytes()


def drawn(client: Any, **changes: Any) -> bytes:
    import base64
    import io

    from PIL import Image

    body = {"prompt": "a seven", "num_inference_steps": 4, "seed": 3, "exact": True, **changes}
    answer = client.post("/v1/images/generations", json=body)
    assert answer.status_code == 200, answer.text
    return Image.open(io.BytesIO(base64.b64decode(answer.json()["data"][0]["b64_json"]))).tobytes()


def test_a_version_goes_when_its_last_user_has_ended(models: EdgeModels, tiny_folder: Path, other_folder: Path) -> None:
    released: list[str] = []
    models.swap("m", Brought(tiny_folder, "1", lambda: released.append("1")))
    old = models.take("m")
    models.swap("m", Brought(other_folder, "2", lambda: released.append("2")))
    assert models.find("m").digest != old.digest and old.retired and not released
    assert models.find(digest=old.digest) is old and models.component(old.files[-1].sha256) is not None
    assert models.find().pipe.vae is old.pipe.vae and models.find().pipe.unet is not old.pipe.unet
    with models.keep(old):
        models.release(old)
        assert not released
    assert released == ["1"]
    with pytest.raises(EdgeFault, match="no model of digest"):
        models.find(digest=old.digest)
    with pytest.raises(EdgeFault, match="another version now"), models.keep(old):
        pass
    left = weakref.ref(old.pipe.unet)
    del old
    gc.collect()
    assert left() is None


def test_a_broken_version_changes_nothing(models: EdgeModels, tiny_folder: Path, tmp_path: Path) -> None:
    released: list[str] = []
    models.swap("m", Brought(tiny_folder, "1"))
    with pytest.raises(ModelError):
        models.swap("m", Brought(tmp_path, "2", lambda: released.append("2")))
    assert models.find("m").tag == "1" and released == ["2"]


def test_unknown_names_are_answered_with_the_known(models: EdgeModels, tiny_folder: Path) -> None:
    models.add("m", FolderSource(str(tiny_folder)))
    with pytest.raises(EdgeFault, match="no model 'n'; this edge serves 'm'"):
        models.take("n")


def test_sessions_and_requests_end_on_the_version_they_began_with(
    tiny_folder: Path, other_folder: Path, tiny_pipeline: Any
) -> None:
    app = create_app(str(tiny_folder), name="m")
    edge = app.state.edge
    with TestClient(app) as client:
        before, expected = client.get("/v1/model").json(), picture(tiny_pipeline)
        assert drawn(client) == expected
        session = client.post("/v1/sessions", json=PLAN)
        edge.models.swap("m", Brought(other_folder, "2"))
        after = client.get("/v1/model").json()
        assert after["digest"] != before["digest"]
        assert client.get("/v1/model", params={"digest": before["digest"]}).json()["files"] == before["files"]
        assert drawn(client) == picture(load_pipeline(str(other_folder), scheduler="DDIMScheduler")) != expected
        data = stepped(tiny_pipeline, session.content, 2)
        ended = client.post(f"{session.headers['Location']}/handoff", content=data)
        assert ended.status_code == 200 and ended.headers["X-Fedkd-Exact"] == "true"
        import io

        from PIL import Image

        assert Image.open(io.BytesIO(ended.content)).tobytes() == expected
        assert client.get("/v1/model", params={"digest": before["digest"]}).status_code == 404
        assert edge.steps.stats()["models"] == 1


def test_two_models_are_served_at_once_by_name(tiny_folder: Path, other_folder: Path) -> None:
    app = create_app(str(tiny_folder), name="one", models={"two": str(other_folder)})
    with TestClient(app) as client:
        assert [each["id"] for each in client.get("/v1/models").json()["data"]] == ["one", "two"]
        assert client.get("/v1/models/two").json()["object"] == "model"
        digests = {name: client.get("/v1/model", params={"model": name}).json()["digest"] for name in ("one", "two")}
        assert len(set(digests.values())) == 2
        assert drawn(client) == drawn(client, model="one") != drawn(client, model="two")
        assert client.get("/v1/model", params={"model": "three"}).status_code == 404


def test_a_device_fetches_the_model_it_draws_with_and_no_other(
    tiny_folder: Path, other_folder: Path, tmp_path: Path
) -> None:
    app = create_app(models={"tiny": str(tiny_folder), "other": str(other_folder)}, num_inference_steps=2)
    with running(app) as http:
        url = str(http.base_url)
        with EdgeClient(url, cache_dir=tmp_path / "one") as client:
            client.prepare(model="other")
            prepared = client.fetched_bytes
            picture = client.generate("a", model="other", device_steps=1)
            assert 0 < prepared == client.fetched_bytes
            assert picture.model_digest != client.model()["digest"]

        async def draw() -> int:
            async with AsyncEdgeClient(url, cache_dir=tmp_path / "two") as other:
                await other.generate("a", model="other", device_steps=1)
                return other.fetched_bytes

        assert asyncio.run(draw()) == prepared


def test_a_registry_here_is_followed(models: EdgeModels, tmp_path: Path, tiny_folder: Path, other_folder: Path) -> None:
    registry = Registry(tmp_path / "registry")
    registry.publish(tiny_folder, name="m")
    models.add("m", RegistrySource(registry, "m"))
    assert models.find("m").version == "v0" and models.refresh() == []
    registry.publish(other_folder, name="m", sampling={"num_inference_steps": 2, "guidance_scale": 1.0})
    assert models.refresh() == ["m"] and models.find("m").version == "v1"
    assert models.find("m").describe()["num_inference_steps"] == 2
    registry.publish(tiny_folder, name="m", alias="candidate", round=2)
    assert models.refresh() == []


def test_a_version_that_cannot_be_served_leaves_the_one_before(
    models: EdgeModels, tmp_path: Path, tiny_folder: Path, other_folder: Path
) -> None:
    registry = Registry(tmp_path / "registry")
    registry.publish(tiny_folder, name="m")
    models.add("m", RegistrySource(registry, "m"))
    broken = tmp_path / "broken"
    shutil.copytree(tiny_folder, broken)
    path = broken / "unet" / "diffusion_pytorch_model.safetensors"
    save_file({key: value * float("nan") for key, value in load_file(path).items()}, path)
    registry.publish(broken, name="m")
    assert models.refresh() == [] and models.find("m").version == "v0"
    registry.publish(other_folder, name="m")
    assert models.refresh() == ["m"] and models.find("m").version == "v2"


def test_the_cloud_is_pulled_from_and_missed_without_harm(
    models: EdgeModels, tmp_path: Path, tiny_folder: Path, other_folder: Path
) -> None:
    registry, cache = Registry(tmp_path / "registry"), CheckpointCache(tmp_path / "cache")
    registry.publish(tiny_folder, name="m")
    with running(create_registry_app(registry.root, "secret")) as cloud:
        source = CloudSource(str(cloud.base_url), "m", cache, "secret")
        models.add("m", source)
        assert models.find("m").folder.is_relative_to(cache.root)
        registry.publish(other_folder, name="m")
        assert models.refresh() == ["m"] and models.find("m").version == "v1"
    assert models.refresh() == [] and models.find("m").version == "v1"
    again = source.bring()
    assert again.tag == registry.manifest("m").digest
    again.release()
    models.close()


def test_requests_in_flight_never_see_a_mixture_of_versions(
    tmp_path: Path, tiny_folder: Path, other_folder: Path, tiny_pipeline: Any
) -> None:
    registry = Registry(tmp_path / "registry")
    registry.publish(tiny_folder, name="m")
    app = create_app("m", name="m", registry=str(registry.root), refresh_s=0.02)
    edge = app.state.edge
    expected = {picture(tiny_pipeline), picture(load_pipeline(str(other_folder), scheduler="DDIMScheduler"))}
    seen = set()
    with running(app) as http, ThreadPoolExecutor(4) as pool:
        for turn in range(4):
            drawing = [pool.submit(drawn, http) for _ in range(8)]
            registry.publish([other_folder, tiny_folder][turn % 2], name="m", round=turn + 1)
            assert until(lambda turn=turn: edge.models.find("m").version == f"v{turn + 1}")
            seen |= {each.result() for each in drawing}
        assert 'fedkd_model_swaps_total{model="m",outcome="swapped"} 4.0' in http.get("/metrics").text
        assert until(lambda: edge.steps.stats()["models"] == 1)
    assert seen == expected
