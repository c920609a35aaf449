"""An edge of the live dispatch benchmark: the real service, made slow by a wait for each row of a forward."""

from __future__ import annotations

import logging
import multiprocessing
import os
import threading
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

# Processes are forked from one that has imported this module, so what an edge needs is imported here.
import diffusers
import torch
import uvicorn
from diffusers import AutoencoderKL, DDIMScheduler, StableDiffusionPipeline, UNet2DConditionModel
from transformers import AutoTokenizer, CLIPTextConfig, CLIPTextModel

from fedkd.cli.benchmarks.dispatch_live import Site
from fedkd.cli.benchmarks.dispatch_live_load import NUMBER_HEADER, PATH
from fedkd.models.source import SHIPPED
from fedkd.serving.balancing import rule_of
from fedkd.serving.connections import server_config
from fedkd.serving.edge import create_app
from fedkd.serving.forwarding import HOP_HEADER
from fedkd.serving.sources import Brought, FolderSource

STEPS = 8  # of a model without a manifest


@dataclass(frozen=True)
class FarSource:
    """A folder that takes its time to come."""

    folder: str
    fetch_s: float
    moves: bool = False

    def tag(self) -> str:
        """The folder itself."""
        return self.folder

    def bring(self) -> Brought:
        """The folder, after a wait."""
        time.sleep(self.fetch_s)
        return FolderSource(self.folder).bring()


class AnswerLog:
    """Writes down, in the file `path`, the number of each request whose picture has left for a client.

    An answer to another edge is none. A line is with the system at once, so that it survives the edge's death.
    """

    def __init__(self, app: Any, path: str) -> None:
        self.app, self.file = app, os.open(path, os.O_APPEND | os.O_CREAT | os.O_WRONLY, 0o600)

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        """Serve as `app` does."""
        headers = dict(scope.get("headers", ()))
        number = headers.get(NUMBER_HEADER.lower().encode(), b"")
        if not number or scope["path"] != PATH or HOP_HEADER.lower().encode() in headers:
            return await self.app(scope, receive, send)
        status = 0

        async def noted(message: Any) -> None:
            nonlocal status
            await send(message)
            status = message.get("status", status)
            if message["type"] == "http.response.body" and not message.get("more_body") and status == 200:
                os.write(self.file, number + b"\n")

        await self.app(scope, receive, noted)


def serve(site: Site, scheduler: str) -> None:
    """Be this edge until the process is ended, or the benchmark's own is."""
    threading.Thread(target=_end_with_the_benchmark, daemon=True).start()
    torch.set_num_threads(1)
    diffusers.utils.logging.disable_progress_bar()
    logging.getLogger("fedkd.serving").setLevel(logging.ERROR)  # edges that die are what this is about
    decoder: Any = AutoencoderKL
    decoder.decode = _decoded  # next to nothing, as the denoisers: see `_slow`
    app = create_app(
        models={name: site.models[name] for name in site.held},
        on_demand={
            name: FarSource(folder, site.fetch_s) for name, folder in site.models.items() if name not in site.held
        },
        url=site.url,
        peers=site.peers,
        dispatch=scheduler,
        gossip_s=site.gossip_s,
        num_inference_steps=STEPS,
        guidance_scale=1.0,
        batch=False,
        max_waiting=site.max_waiting,
    )
    edge = app.state.edge
    for served in edge.models.current():
        _slow(served.pipe.unet, site.row_s)
    add_model = edge.steps.add_model

    def add_slow_model(key: str, denoiser: Any) -> None:
        _slow(denoiser, site.row_s)
        add_model(key, denoiser)

    edge.steps.add_model = add_slow_model

    @app.post("/benchmark/{rule}", include_in_schema=False)
    async def choose(rule: str) -> None:
        edge.cluster.dispatcher.rule = rule_of(rule)

    noting = AnswerLog(app, site.answer_log)
    uvicorn.Server(server_config(noting, host="127.0.0.1", port=site.port, log_level="critical")).run()


def _end_with_the_benchmark() -> None:
    parent = multiprocessing.parent_process()
    if parent is not None:
        parent.join()
        os._exit(1)


def _decoded(_: AutoencoderKL, latents: torch.Tensor, **__: Any) -> tuple[torch.Tensor]:
    return (latents[:, :3].tanh(),)


def _slow(denoiser: Any, row_s: float) -> None:
    """Let a forward be a wait and one multiplication: two cores have to do for four edges and their clients."""
    factor = 1 + 0.1 * float(denoiser.conv_out.bias[0].detach())  # a model's own, so that pictures tell models apart

    def forward(sample: torch.Tensor, *args: Any, **kwargs: Any) -> Any:
        time.sleep(row_s * len(sample))
        return (sample * factor,)

    denoiser.forward = forward


def make_models(root: str, names: Sequence[str]) -> None:
    """Write small pipelines with random weights of their own to `root`/NAME."""
    torch.set_num_threads(1)
    for seed, name in enumerate(names):
        torch.manual_seed(seed)
        tokenizer = AutoTokenizer.from_pretrained(str(SHIPPED / "tiny-sd" / "tokenizer"), model_max_length=8)
        text = CLIPTextConfig(
            vocab_size=len(tokenizer), hidden_size=16, intermediate_size=16, num_hidden_layers=1, num_attention_heads=2,
            max_position_embeddings=8, bos_token_id=tokenizer.bos_token_id, eos_token_id=tokenizer.eos_token_id,
            pad_token_id=tokenizer.pad_token_id,
        )  # fmt: skip
        unet = UNet2DConditionModel(
            sample_size=8, in_channels=4, out_channels=4, block_out_channels=(8,), layers_per_block=1,
            cross_attention_dim=16, attention_head_dim=4, norm_num_groups=4,
            down_block_types=("CrossAttnDownBlock2D",), up_block_types=("CrossAttnUpBlock2D",),
        )  # fmt: skip
        vae = AutoencoderKL(
            block_out_channels=(8, 8), layers_per_block=1, latent_channels=4, norm_num_groups=4, sample_size=16,
            down_block_types=("DownEncoderBlock2D",) * 2, up_block_types=("UpDecoderBlock2D",) * 2,
        )  # fmt: skip
        StableDiffusionPipeline(
            vae=vae, text_encoder=CLIPTextModel(text), tokenizer=tokenizer, unet=unet,
            scheduler=DDIMScheduler(clip_sample=False, steps_offset=1), safety_checker=None, feature_extractor=None,
            requires_safety_checker=False,
        ).save_pretrained(str(Path(root) / name), safe_serialization=True)  # fmt: skip
