"""The ClientApp of `fedkd bench faults`: real nodes, one of which may misbehave as its environment says."""

from __future__ import annotations

import os
import random
from collections.abc import Callable
from typing import Any

from flwr.app import Context, Message
from flwr.clientapp import ClientApp

from clients import app as real
from clients.payload import pack, unpack

FAULT = "FEDKD_BENCH_FAULT"  # garbage | nan | random_labels, of one node's processes; anything else: none
NO_LIMIT = 2**62

app = ClientApp()


def fault() -> str:
    """What this node does wrong."""
    return os.environ.get(FAULT, "")


@app.query("describe")
def describe(message: Message, context: Context) -> Message:
    """As it is."""
    return real.describe(message, context)


@app.train("refresh")
def refresh(message: Message, context: Context) -> Message:
    """As it is."""
    return real.refresh(message, context)


@app.train("synthesise")
def synthesise(message: Message, context: Context) -> Message:
    """A user's set, or with `garbage` bytes that are none."""
    if fault() == "garbage":
        return Message(pack({"audit": {}}, {"set": random.Random(0).randbytes(100_000)}), reply_to=message)
    return real.synthesise(message, context)


@app.train("finetune")
def finetune(message: Message, context: Context) -> Message:
    """An edge's adapter: learned, or of NaNs, or learned from pictures whose captions are drawn at random."""
    if fault() == "random_labels":
        return real.finetune(changed(message, files=mislabelled), context)
    if fault() != "nan":
        return real.finetune(message, context)
    reply = real.finetune(changed(message, recipe=hasty), context)
    task, files = unpack(reply.content, max_bytes=NO_LIMIT)
    return Message(pack(task, {"adapter": not_numbers(files["adapter"])}), reply_to=message)


def changed(
    message: Message,
    *,
    recipe: Callable[[Any], Any] = lambda recipe: recipe,
    files: Callable[[Any, dict[str, bytes]], dict[str, bytes]] = lambda recipe, files: files,
) -> Message:
    """The instruction with another recipe, or with other files."""
    from clients.node import recipe_of
    from fedkd.recipe import to_yaml

    task, sent = unpack(message.content, max_bytes=NO_LIMIT)
    found = recipe_of(task["recipe"])
    message.content = pack({**task, "recipe": to_yaml(recipe(found))}, files(found, sent))
    return message


def hasty(recipe: Any) -> Any:
    """The recipe with next to no work for an edge."""
    import dataclasses

    return dataclasses.replace(
        recipe,
        finetune=dataclasses.replace(recipe.finetune, steps=1),
        evaluation=dataclasses.replace(recipe.evaluation, samples_per_concept=1),
    )


def not_numbers(adapter: bytes) -> bytes:
    """The adapter with NaN for every weight."""
    from safetensors.torch import load, save

    from fedkd.models.adapter import file_metadata

    return save({key: value * float("nan") for key, value in load(adapter).items()}, metadata=file_metadata(adapter))


def mislabelled(recipe: Any, sets: dict[str, bytes]) -> dict[str, bytes]:
    """The sets with captions drawn from the recipe's grammar, whatever the pictures show."""
    from fedkd.data.captions import prompts_for
    from fedkd.data.packing import pack_dataset, unpack_rows
    from fedkd.data.sources import to_dataset

    chance = random.Random(0)
    concepts = [*recipe.prompts.known, *recipe.prompts.taught]

    def caption() -> str:
        return prompts_for(recipe.prompts, chance.choice(concepts), 1, chance.randrange(2**31))[0]

    return {
        name: pack_dataset(to_dataset([{**row, "caption": caption()} for row in unpack_rows(data, NO_LIMIT)]))
        for name, data in sets.items()
    }
