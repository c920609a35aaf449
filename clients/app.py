"""The Flower ClientApp of users and edges."""

from __future__ import annotations

from flwr.app import Context, Message
from flwr.clientapp import ClientApp

from clients import edge, node, user

app = ClientApp()


@app.query("describe")
def describe(message: Message, context: Context) -> Message:
    """What this node is and holds."""
    return node.answer(message, context, node.describe)


@app.train("refresh")
def refresh(message: Message, context: Context) -> Message:
    """Fetch what the cache lacks of the published checkpoint."""
    return node.answer(message, context, edge.refresh)


@app.train("synthesise")
def synthesise(message: Message, context: Context) -> Message:
    """A user's synthetic set."""
    return node.answer(message, context, user.synthesise)


@app.train("finetune")
def finetune(message: Message, context: Context) -> Message:
    """An edge's adapter."""
    return node.answer(message, context, edge.finetune)
