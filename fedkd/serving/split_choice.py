"""`device_steps='auto'`: the planner's exact answer for this device, this edge and the model it serves."""

from __future__ import annotations

import json
import time
from dataclasses import replace
from typing import Any

import torch

from fedkd.inference.schedulers import SchedulerError, fresh
from fedkd.models.architecture import without_weights
from fedkd.models.conditioning import predict
from fedkd.models.flops import conditions_for, denoiser_flop, latent_shape, model_cost
from fedkd.models.pipeline import DTYPES
from fedkd.models.source import ModelError
from fedkd.planning.split import Split, best_split
from fedkd.planning.system import ORDERS, Device, EdgeQueue, ModelCost
from fedkd.serving.device_model import DENOISERS, part_of
from fedkd.serving.device_side import DeviceSide
from fedkd.serving.fallback import DeviceCannot
from fedkd.serving.fetch import FetchError, fetch_blob, files_of
from fedkd.serving.protocol import EdgeError, Steps, Work
from fedkd.serving.split_request import Wish


def choose_split(side: DeviceSide, edge: str, model: dict[str, Any], wish: Wish) -> Steps[Split]:
    """The best split of `wish` at `edge`, with the reasons.

    The device's speed is measured where it holds the denoiser, else its profile's, with the fetch counted;
    the edge's is what its traffic has shown, else its profile's, or this device's own where both compute with
    the same kind of machine. Pictures that the edge draws at this moment slow it down.
    """
    pipe = yield from _figures(side, edge, model)
    size = int(DTYPES[side.local.dtype].itemsize)
    cost: ModelCost = yield Work(lambda: ModelCost(**model_cost(pipe, min(model["resolution"]), size)))
    device, device_flop, most, reasons = side.device_profile, None, None, []
    cold = not side.local.holds(model)
    if not cold:
        try:
            denoiser = yield from side.local.denoiser(edge, model)
            shape, conditions = latent_shape(pipe, min(model["resolution"])), conditions_for(pipe, denoiser)
            flop: float = yield Work(lambda: denoiser_flop(denoiser, shape, conditions))
            device_flop = flop if side.local.checkpoint is not None else None
            if device_flop is not None:
                share = device_flop / cost.unet_flop
                reasons.append(f"a step of the device's own {side.local.own_name} is {share:.0%} of the edge's work")
            device = yield Work(lambda: measured(side, denoiser, shape, conditions, flop))
            reasons.append(f"this device does {device.flops_per_s / 1e9:,.1f} GFLOP/s (measured)")
        except DeviceCannot as error:
            most = 0
            reasons.append(str(error))
    alike = not cold and most is None and _alike(side, model)
    load = model.get("load") or {}
    if row_s := load.get("row_s"):
        server, how = replace(side.edge_profile, flops_per_s=cost.unet_flop / float(row_s)), "measured there"
    elif alike:
        server, how = replace(side.edge_profile, flops_per_s=device.flops_per_s), "as this device"
    else:
        server, how = side.edge_profile, side.edge_profile.name
    reasons.append(f"the edge {server.flops_per_s / 1e9:,.1f} ({how})")
    jobs = int(load.get("jobs", 0))
    if jobs:
        reasons.append(f"{jobs} other pictures share the edge's time")
    guidance = model.get("guidance_scale", 1.0) if wish.guidance_scale is None else wish.guidance_scale
    found = best_split(
        cost,
        device,
        server,
        side.link,
        num_inference_steps=_evaluations(model, wish),
        guidance=float(guidance) > 1,
        orders=[wish.order] if wish.order else ORDERS,
        decode=wish.decode,
        cold_device=cold,
        device_unet_flop=device_flop,
        most_device_steps=most,
        delay_limit_s=wish.delay_limit_s,
        queue=EdgeQueue(slowdown=1.0 + jobs),  # its engine serves them by turns; shared forwards make it less
    )
    return replace(found, reasons=(*found.reasons, *reasons))


def measured(
    side: DeviceSide, denoiser: Any, shape: tuple[int, int, int], conditions: dict[str, torch.Tensor], flop: float
) -> Device:
    """The device's profile with the speed of one forward of `denoiser` (the faster of two), kept for later."""
    if denoiser not in side.speeds:
        weights = next(denoiser.parameters())
        latents = torch.zeros(1, *shape, device=weights.device, dtype=weights.dtype)
        blank = {k: torch.zeros(v.shape, device=weights.device, dtype=weights.dtype) for k, v in conditions.items()}
        seconds = []
        for _ in range(2):
            began = time.perf_counter()
            with torch.no_grad():
                float(predict(denoiser, latents, torch.ones(1, device=weights.device), blank).sum())  # waits for it
            seconds.append(time.perf_counter() - began)
        side.speeds[denoiser] = flop / min(seconds)
    return replace(side.device_profile, flops_per_s=side.speeds[denoiser])


def _alike(side: DeviceSide, model: dict[str, Any]) -> bool:
    build = model.get("build") or {}
    return build.get("device") == side.local.device == "cpu" and build.get("threads") == torch.get_num_threads()


def _evaluations(model: dict[str, Any], wish: Wish) -> int:
    """Evaluations of the denoiser in the whole picture: T, but 2T-1 for Heun and T+1 for PNDM."""
    steps = wish.num_inference_steps or int(model["num_inference_steps"])
    config = dict(model["scheduler"]["config"])
    arguments = {"num_inference_steps": steps} | ({"mu": 1.0} if config.get("use_dynamic_shifting") else {})
    try:
        return len(fresh(wish.scheduler or model["scheduler"]["class"], config, arguments).timesteps)
    except SchedulerError as error:
        raise EdgeError(str(error)) from error


def _figures(side: DeviceSide, edge: str, model: dict[str, Any]) -> Steps[Any]:
    """The model's parts without weights, on the meta device, built from the edge's configurations."""
    configs: dict[str, tuple[str, dict[str, Any]]] = {}
    _, denoiser = part_of(model, DENOISERS)
    for name, made in model["classes"].items():
        if name not in (denoiser, "vae") and not name.startswith("text_encoder"):
            continue
        listed = [file for file in files_of(model, name) if file["name"] == "config.json"]
        if not listed:
            raise FetchError(f"the edge's model has no configuration of its {name}")
        path, count = yield from fetch_blob(edge, listed[0]["sha256"], listed[0]["size_bytes"], side.local.cache)
        side.local.fetched_bytes += count
        configs[name] = made, json.loads(path.read_text("utf-8"))
    try:
        return (yield Work(lambda: without_weights(configs)))
    except ModelError as error:
        raise EdgeError(f"device_steps='auto': {error}, or give a number of steps") from error
