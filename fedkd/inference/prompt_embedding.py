"""A prompt as a vector whose direction is its meaning: the pipeline's own text encoder, or a sentence transformer."""

from __future__ import annotations

import hashlib
import importlib.util
from collections.abc import Callable
from typing import Any

import numpy as np
import torch

from fedkd.models.conditioning import Conditions

Embedder = Callable[[str, Conditions], Any]
TEXT_ENCODER, SENTENCES = "text_encoder", "sentence-transformers:"
DENOISER = "denoiser"  # what it makes of a prompt; it has to be asked (`prompt_probe`), so it is no Embedder


class EmbeddingError(ValueError):
    """An embedding that is not known, or whose package or model is not here."""


def prompt_embedder(name: str) -> Embedder:
    """(prompt, its conditions) → (d,) float64, or None for a prompt without direction, such as the empty one.

    `text_encoder`, or `sentence-transformers:MODEL` where that package and model are installed. EmbeddingError.
    """
    if name == TEXT_ENCODER:
        return lambda prompt, conditions: text_encoder_embedding(conditions)
    if name.startswith(SENTENCES) and name != SENTENCES:
        return _sentences(name.removeprefix(SENTENCES))
    raise EmbeddingError(f"embedding={name!r} is not known; give {DENOISER}, {TEXT_ENCODER} or {SENTENCES}MODEL")


def text_encoder_embedding(conditions: Conditions) -> Any:
    """The mean over tokens of what the text encoder says of a prompt (d,), less the empty prompt's where it is there.

    Without that difference all prompts of a text encoder lie in one narrow cone.
    """
    states = conditions["encoder_hidden_states"].detach().to("cpu", torch.float64)
    found = states[-1] - states[0] if len(states) == 2 else states[-1]
    vector = found.mean(0).numpy()
    return vector if np.isfinite(vector).all() and np.linalg.norm(vector) > 1e-9 else None


def words_of(conditions: Conditions) -> str:
    """A digest by which prompts that the model cannot tell apart are the same, such as those that differ in case."""
    digest = hashlib.sha256()
    for name in sorted(conditions):
        digest.update(conditions[name].detach().to("cpu", torch.float32).contiguous().numpy().tobytes())
    return digest.hexdigest()


def _sentences(model: str) -> Embedder:
    if importlib.util.find_spec("sentence_transformers") is None:
        raise EmbeddingError(
            f"embedding={SENTENCES}{model} needs sentence-transformers; "
            f"run: pip install sentence-transformers, or give embedding={TEXT_ENCODER}"
        )
    from sentence_transformers import SentenceTransformer  # type: ignore[import-not-found,unused-ignore]

    try:
        loaded = SentenceTransformer(model, device="cpu")
    except Exception as error:
        reason = (str(error).strip().splitlines() or [type(error).__name__])[0]
        raise EmbeddingError(f"embedding={SENTENCES}{model} cannot be loaded: {reason}") from error

    def embed(prompt: str, conditions: Conditions) -> Any:
        vector = np.asarray(loaded.encode(prompt), dtype=np.float64)
        return vector if np.linalg.norm(vector) > 1e-9 else None

    return embed
