"""An edge: caches the published checkpoint and fine-tunes an adapter on its users' synthetic sets."""

from __future__ import annotations

from dataclasses import asdict
from typing import Any

from flwr.app import RecordDict

from clients.node import NodeError, Request, use_threads
from clients.payload import pack
from clients.pipelines import pipeline
from clients.sets import by_edge, captions_of, collected, spool_of


def refresh(request: Request) -> RecordDict:
    """Get the blobs that lack, verify, swap atomically; answer the digest now served and what it cost."""
    taken, cache = request.checkpoint(), request.cache
    return pack({"digest": cache.digest, "cache": asdict(cache.counters), "checkpoint_bytes": taken.cost()})


def finetune(request: Request) -> RecordDict:
    """D_E^b → adapter_b: LoRA on the cached model over the union of the users' sets, and its accuracy.

    Sets come with the message, or (`federation.sets_route=edge`) lie in the edge's spool; then the answer also has
    `missing` {user: why}, and captions for the cloud, which has no pictures to learn from, to draw with the adapter.
    """
    if request.node.role != "edge":
        raise NodeError(f"{request.node.name} is a {request.node.role}; only an edge fine-tunes")
    from fedkd.data.packing import unpack_rows
    from fedkd.data.sources import to_dataset
    from fedkd.evaluation.accuracy import evaluate
    from fedkd.models.adapter import load_adapter, remove_adapters
    from fedkd.models.pipeline import denoiser_of
    from fedkd.training.finetune import finetune as train_adapter
    from fedkd.training.finetune import privacy_of

    recipe = request.recipe
    use_threads(recipe)
    limit = int(recipe.federation.max_message_mb * 2**20)
    told: dict[str, Any] = {}
    if by_edge(request.node, recipe):
        pictures, missing = collected(spool_of(request.node), request.task["receipts"], recipe)
        captions = captions_of(pictures, recipe.distillation.pictures, request.seed)
        told = {"missing": missing, "captions": captions}
        if not pictures:
            return pack(told)
    else:
        pictures = [row for name in request.task["sets"] for row in unpack_rows(request.files[str(name)], limit)]
    with request.cache.lease() as checkpoint:
        pipe = pipeline(request.cache.digest, checkpoint, recipe)
    adapter, curves = train_adapter(
        pipe, to_dataset(pictures), recipe.finetune, seed=request.seed, progress=request.progress()
    )
    load_adapter(denoiser_of(pipe), adapter, "edge")
    metrics = evaluate(pipe, recipe, seed=int(request.task["evaluation_seed"]))
    remove_adapters(denoiser_of(pipe))
    facts = {"metrics": metrics, "loss": curves["loss"], **told}
    spent = privacy_of(recipe.finetune, len(pictures))
    if spent is not None:
        facts["privacy"] = spent.facts()
    return pack(facts, {"adapter": adapter})
