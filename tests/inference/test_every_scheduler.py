"""Device and edge, in either order and split anywhere, draw the pipeline's latents with every scheduler."""

from __future__ import annotations

from typing import Any

import diffusers
import pytest
import torch

from fedkd.inference.denoiser import Job, denoise, encode, hand_off, start, take_up
from fedkd.inference.handoff import HandOff
from fedkd.models.pipeline import denoiser_of
from tests.models.families import sd3

T = 4
DPM = "DPMSolverMultistepScheduler"
FLOW = {"prediction_type": "flow_prediction", "use_flow_sigmas": True, "flow_shift": 3.0}
FOR_SD: dict[str, tuple[str, dict[str, Any]]] = {
    "ddim": ("DDIMScheduler", {}),
    "pndm": ("PNDMScheduler", {}),
    "pndm-without-prk": ("PNDMScheduler", {"skip_prk_steps": True}),
    "euler": ("EulerDiscreteScheduler", {}),
    "euler-karras": ("EulerDiscreteScheduler", {"use_karras_sigmas": True}),
    "euler-ancestral": ("EulerAncestralDiscreteScheduler", {}),
    "dpm++1": (DPM, {"solver_order": 1}),
    "dpm++2": (DPM, {"solver_order": 2}),
    "dpm++2-karras": (DPM, {"solver_order": 2, "use_karras_sigmas": True}),
    "dpm++3": (DPM, {"solver_order": 3}),
    "dpm++sde": (DPM, {"algorithm_type": "sde-dpmsolver++"}),
    "unipc": ("UniPCMultistepScheduler", {}),
    "unipc3": ("UniPCMultistepScheduler", {"solver_order": 3}),
    "heun": ("HeunDiscreteScheduler", {}),
    "lcm": ("LCMScheduler", {}),
}
FOR_SD3: dict[str, tuple[str, dict[str, Any]]] = {
    "flow-euler": ("FlowMatchEulerDiscreteScheduler", {"shift": 3.0}),
    "flow-heun": ("FlowMatchHeunDiscreteScheduler", {"shift": 3.0}),
    "flow-dpm++1": (DPM, {**FLOW, "solver_order": 1, "final_sigmas_type": "zero"}),
    "flow-dpm++2": (DPM, {**FLOW, "solver_order": 2}),
    "flow-unipc": ("UniPCMultistepScheduler", FLOW),
}
pytestmark = pytest.mark.filterwarnings("ignore:__array:DeprecationWarning", "ignore::FutureWarning")


@pytest.fixture(scope="module")
def flow_pipeline(tmp_path_factory: pytest.TempPathFactory) -> Any:
    """A tiny SD3 without T5."""
    torch.manual_seed(0)
    pipe = sd3(tmp_path_factory.mktemp("tokenizer"))
    pipe.set_progress_bar_config(disable=True)
    return pipe


def begin(pipe: Any, conditions: Any) -> Job:
    return start(pipe, conditions, seed=5, num_inference_steps=T, guidance_scale=3.0)


def across(job: Job, *, with_conditions: bool, kept: Any = None) -> Job:
    """`job` after its bytes went to another machine, which keeps `kept` where they carry no conditions."""
    data = hand_off(job, "m", with_conditions=with_conditions).to_bytes()
    return take_up(HandOff.from_bytes(data, model="m"), conditions=kept)


def drawn_by_both(pipe: Any, job: Job, order: str, device_steps: int) -> torch.Tensor:
    """Final latents of a picture begun by the edge, of which the device does `device_steps` evaluations."""
    network, kept = denoiser_of(pipe), job.conditions
    if order == "edge_first":
        denoise(network, job, job.total - device_steps)
    device = across(job, with_conditions=True)
    denoise(network, device, device.step + device_steps)
    edge = across(device, with_conditions=False, kept=kept)
    return denoise(network, edge).latents


def check(pipe: Any, name: str, config: dict[str, Any], order: str) -> None:
    before = pipe.scheduler
    pipe.scheduler = getattr(diffusers, name).from_config(before.config, **config)
    try:
        conditions = encode(pipe, "a red seven", 3.0)
        expected = pipe(
            "a red seven",
            num_inference_steps=T,
            guidance_scale=3.0,
            height=32,
            width=32,
            output_type="latent",
            generator=torch.Generator("cpu").manual_seed(5),
        ).images
        assert torch.isfinite(expected).all()
        total = begin(pipe, conditions).total
        for device_steps in (0, 1, total // 2, total - 1, total):
            found = drawn_by_both(pipe, begin(pipe, conditions), order, device_steps)
            assert torch.equal(found, expected), f"{order}, {device_steps} of {total} on the device"
    finally:
        pipe.scheduler = before


@pytest.mark.parametrize("order", ["device_first", "edge_first"])
@pytest.mark.parametrize("name", FOR_SD)
def test_stable_diffusion_is_drawn_as_by_its_pipeline(tiny_pipeline: Any, name: str, order: str) -> None:
    check(tiny_pipeline, *FOR_SD[name], order)


@pytest.mark.parametrize("order", ["device_first", "edge_first"])
@pytest.mark.parametrize("name", FOR_SD3)
def test_flow_matching_is_drawn_as_by_its_pipeline(flow_pipeline: Any, name: str, order: str) -> None:
    check(flow_pipeline, *FOR_SD3[name], order)
