"""A user: turns private pictures into synthetic ones, and gives nothing else away."""

from __future__ import annotations

from typing import TYPE_CHECKING

from flwr.app import RecordDict

from clients.node import NodeError, Request, use_threads
from clients.payload import pack
from clients.pipelines import pipeline
from clients.sets import by_edge, deliver, way_of

if TYPE_CHECKING:
    from datasets import Dataset


def private_images(request: Request) -> tuple[Dataset, list[str]]:
    """The user's own captioned images, and the names of files that had to be skipped.

    From the folder that the node's configuration names, else from the recipe's data by partition.
    """
    if request.node.data:
        from fedkd.data.sources import load_folder

        return load_folder(request.node.data, request.recipe.model.resolution)
    from fedkd.data.partition import user_images

    return user_images(request.recipe, request.node.index), []


def synthesise(request: Request) -> RecordDict:
    """D_n → D'_n: refresh the cached model, synthesise, answer the synthetic set and its audit.

    With `federation.sets_route=edge` the set goes to the user's edge, and the answer has only its receipt.
    """
    if request.node.role != "user":
        raise NodeError(f"{request.node.name} is an {request.node.role}; only a user synthesises")
    way = way_of(request.node) if by_edge(request.node, request.recipe) else None  # before the work, not after it
    from fedkd.data.packing import pack_dataset
    from fedkd.synthesis.synthesise import synthesise as make_synthetic

    recipe = request.recipe
    use_threads(recipe)
    taken = request.checkpoint()
    private, skipped = private_images(request)
    pipe = pipeline(request.cache.digest, taken.folder, recipe)
    synthetic, audit = make_synthetic(pipe, private, recipe, request.seed)
    audit = {**audit, "skipped": len(skipped)}
    facts = {"audit": audit, "edge": request.node.edge, "checkpoint_bytes": taken.cost()}
    data = pack_dataset(synthetic)
    if way is None:
        return pack(facts, {"set": data})
    receipt = {**deliver(data, request.node.name, way), "count": len(synthetic)}
    return pack({**facts, "receipt": receipt})
