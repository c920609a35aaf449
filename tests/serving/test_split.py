"""Device and edge in separate processes make the unsplit pipeline's picture over HTTP, bit for bit."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import diffusers
import pytest
import torch

from fedkd.serving.device import EdgeClient, EdgeError
from fedkd.serving.loopback import LoopbackError, free_port, serve_in_process

T = 4
DPM = "DPMSolverMultistepScheduler"
OPTIONS: dict[str, dict[str, Any]] = {
    "order 1": {"solver_order": 1},
    "order 3": {"solver_order": 3},
    "SDE": {"algorithm_type": "sde-dpmsolver++"},
}
SCHEDULERS = {  # and how many evaluations of the denoiser they take for T steps
    "DDIMScheduler": T,
    "PNDMScheduler": 13,  # its Runge-Kutta start, which the configurations of SD itself leave out
    "EulerDiscreteScheduler": T,
    "EulerAncestralDiscreteScheduler": T,
    "DPMSolverMultistepScheduler": T,
    "UniPCMultistepScheduler": T,
    "HeunDiscreteScheduler": 2 * T - 1,
    "LCMScheduler": T,
    **{f"{DPM}, {name}": T for name in OPTIONS},
}


@pytest.fixture(scope="module")
def client(edge_url: str, tmp_path_factory: pytest.TempPathFactory) -> Any:
    """A device with an empty cache."""
    torch.set_num_threads(1)
    with EdgeClient(edge_url, cache_dir=tmp_path_factory.mktemp("cache")) as found:
        yield found


@pytest.fixture(scope="module")
def pipeline(tiny_folder: Path) -> Any:
    """diffusers' own pipeline of the folder that the edge serves.

    Not the one in memory: diffusers gives another scheduler class its own defaults for what was never set, and
    a saved configuration has everything set.
    """
    found: Any = diffusers.DiffusionPipeline.from_pretrained(str(tiny_folder), local_files_only=True)
    found.set_progress_bar_config(disable=True)
    return found


def unsplit(pipe: Any, scheduler: str, options: dict[str, Any], output_type: str) -> Any:
    before = pipe.scheduler
    pipe.scheduler = getattr(diffusers, scheduler).from_config(before.config, **options)
    try:
        return pipe(
            "a red seven",
            num_inference_steps=T,
            guidance_scale=2.0,
            output_type=output_type,
            generator=torch.Generator("cpu").manual_seed(5),
        ).images
    finally:
        pipe.scheduler = before


@pytest.mark.parametrize("order", ["device_first", "edge_first"])
@pytest.mark.parametrize(("scheduler", "total"), SCHEDULERS.items())
def test_every_split_point_equals_the_unsplit_pipeline_over_http(
    pipeline: Any, client: EdgeClient, scheduler: str, total: int, order: Any
) -> None:
    assert client.same_build()
    scheduler, _, variant = scheduler.partition(", ")
    options = OPTIONS.get(variant, {})
    latents = unsplit(pipeline, scheduler, options, "latent")
    picture = unsplit(pipeline, scheduler, options, "pil")[0]
    for device_steps in (0, 1, total // 2, total - 1, total):
        for decode in ("edge", "device") if device_steps == total // 2 else ("edge",):
            result = client.generate(
                "a red seven",
                num_inference_steps=T,
                device_steps=device_steps,
                order=order,
                seed=5,
                guidance_scale=2.0,
                scheduler=scheduler,
                scheduler_options=options or None,
                decode=decode,
            )
            assert result.latents is not None
            assert torch.equal(result.latents, latents), f"{device_steps} on the device, decode by {decode}"
            assert result.image.tobytes() == picture.tobytes()
            assert (result.device_steps, result.edge_steps) == (device_steps, total - device_steps)
            assert result.bytes_up > 0 and result.bytes_down > 0


def test_the_device_returns_latents_and_state_but_no_embeddings(client: EdgeClient) -> None:
    result = client.generate("a", device_steps=2, with_latents=False, scheduler="DDIMScheduler")
    assert result.latents is None
    assert result.bytes_up < 4 * 4 * 8 * 8 + 2000 < 2 * 16 * 32 * 4


def test_progress_runs_to_the_end_over_both_halves(client: EdgeClient) -> None:
    for order in ("device_first", "edge_first"):
        seen: list[tuple[int, int]] = []
        client.generate("a", device_steps=2, order=order, progress=lambda *at, seen=seen: seen.append(at))
        assert seen == sorted(seen) and seen[-1] == (T, T)


def test_more_steps_than_there_are_is_refused_with_the_number(client: EdgeClient) -> None:
    with pytest.raises(EdgeError, match="give 0 to 4"):
        client.generate("a", num_inference_steps=T, device_steps=T + 1)


def test_an_unknown_scheduler_names_the_nearest(client: EdgeClient) -> None:
    with pytest.raises(EdgeError, match="did you mean 'DDIMScheduler'"):
        client.generate("a", device_steps=1, scheduler="DDIMSchedule")


def test_an_option_that_the_scheduler_does_not_take_is_named(client: EdgeClient) -> None:
    with pytest.raises(EdgeError, match=r"scheduler_options\.solver_order is not an option of DDIMScheduler"):
        client.generate("a", device_steps=1, scheduler="DDIMScheduler", scheduler_options={"solver_order": 2})


def test_an_unreachable_edge_is_one_clear_line(tmp_path: Path) -> None:
    port = free_port()
    with (
        EdgeClient(f"http://127.0.0.1:{port}", cache_dir=tmp_path) as lonely,
        pytest.raises(EdgeError, match="cannot reach the edge"),
    ):
        lonely.generate("a", device_steps=1)


def test_another_dtype_is_refused_before_any_step(edge_url: str, tmp_path: Path) -> None:
    with (
        EdgeClient(edge_url, cache_dir=tmp_path, dtype="bfloat16") as other,
        pytest.raises(EdgeError, match="same dtype"),
    ):
        other.generate("a", device_steps=1)


def test_an_edge_that_cannot_start_says_why(tmp_path: Path) -> None:
    with pytest.raises(LoopbackError, match=r"model_index\.json"), serve_in_process(str(tmp_path)):
        pass


def test_a_slow_link_waits_for_no_event_of_a_session_that_has_ended(edge_url: str, tmp_path: Path) -> None:
    from fedkd.cli.benchmarks.limiter import limited

    asked: list[str] = []
    with limited(edge_url, 1e6) as link, EdgeClient(link.url, cache_dir=tmp_path) as far:
        far.prepare()
        far._connection._http.event_hooks["request"].append(lambda request: asked.append(request.url.path))
        far.generate("a", device_steps=2, order="edge_first", scheduler="DDIMScheduler")
        assert not [path for path in asked if path.endswith("/events")]
        seen: list[tuple[int, int]] = []
        far.generate("a", device_steps=2, order="edge_first", progress=lambda *at: seen.append(at))
        assert seen == sorted(seen) and seen[-1] == (T, T)
