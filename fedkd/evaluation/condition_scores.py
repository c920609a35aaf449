"""How well a drawn picture keeps its source's look and its prompt's words: scorers in 0..1, by name."""

from __future__ import annotations

import importlib.util
from collections.abc import Callable, Sequence

import numpy as np
from PIL import Image

from fedkd.data.captions import slots_of
from fedkd.data.digits import TEMPLATE
from fedkd.recipe.sections import PromptsConfig

Pictures = Sequence[Image.Image]
Perceptual = Callable[[Pictures, Pictures], np.ndarray]
Prompt = Callable[[Sequence[str], Pictures], np.ndarray]

PACKAGES = {"dreamsim": "dreamsim", "imagereward": "ImageReward"}


class ScorerError(ValueError):
    """A scorer that is not there, or that cannot judge what it is given."""


def perceptual(name: str) -> tuple[str, Perceptual]:
    """(name, scorer(sources, drawn) -> (N,)) of `dreamsim`, `ssim`, or `auto`: DreamSim where it is installed."""
    if name == "auto":
        name = "dreamsim" if _installed("dreamsim") else "ssim"
    if name == "dreamsim":
        _need("dreamsim", "dreamsim")
        return name, _dreamsim()
    if name == "ssim":
        return name, ssim
    raise ScorerError(f"--perceptual {name} is not known; give auto, dreamsim or ssim")


def prompt(name: str, classifier: str) -> tuple[str, Prompt]:
    """(name, scorer(captions, drawn) -> (N,)) of `imagereward`, `classifier`, or `auto`: the first if installed."""
    if name == "auto":
        name = "imagereward" if _installed("imagereward") else "classifier"
    if name == "imagereward":
        _need("imagereward", "image-reward")
        return name, _imagereward()
    if name == "classifier":
        return name, read_share(classifier)
    raise ScorerError(f"--prompt-scorer {name} is not known; give auto, imagereward or classifier")


def ssim(sources: Pictures, drawn: Pictures) -> np.ndarray:
    """(N,) structural similarity, negative values as 0."""
    from torchmetrics.functional.image import structural_similarity_index_measure

    from fedkd.models.latents import to_pixels

    side = drawn[0].size[0]
    found = structural_similarity_index_measure(
        to_pixels(list(drawn), side), to_pixels(list(sources), side), data_range=(-1.0, 1.0), reduction="none"
    )
    return np.clip(np.atleast_1d(found.numpy()).astype(float), 0, 1)


def read_share(classifier: str) -> Prompt:
    """A scorer by the share of a caption's words that the reference classifier reads from the picture."""
    from fedkd.evaluation.accuracy import judge

    model = judge(classifier)
    grammar = PromptsConfig(template=TEMPLATE, slots=model.slots)

    def score(captions: Sequence[str], drawn: Pictures) -> np.ndarray:
        asked = []
        for caption in captions:
            slots = slots_of(grammar, caption)
            if slots is None:
                raise ScorerError(
                    f"the classifier reads captions like '{TEMPLATE}', not '{caption}'; "
                    "pip install image-reward, and give --prompt-scorer imagereward"
                )
            asked.append(slots)
        read = model.read(list(drawn), drawn[0].size[0])
        return np.array(
            [
                np.mean([found[slot] == value for slot, value in each.items()])
                for each, found in zip(asked, read, strict=True)
            ]
        )

    return score


def _dreamsim() -> Perceptual:
    """1 - DreamSim distance (Fu et al. 2023)."""
    import torch
    from dreamsim import dreamsim

    model, prepare = dreamsim(pretrained=True, device="cpu")

    @torch.no_grad()
    def score(sources: Pictures, drawn: Pictures) -> np.ndarray:
        pairs = zip(sources, drawn, strict=True)
        return np.clip([1 - float(model(prepare(one), prepare(other))) for one, other in pairs], 0, 1)

    return score


def _imagereward() -> Prompt:
    """ImageReward (Xu et al. 2023), a standard score, through the normal distribution to 0..1."""
    import math

    import ImageReward

    model = ImageReward.load("ImageReward-v1.0")

    def score(captions: Sequence[str], drawn: Pictures) -> np.ndarray:
        pairs = zip(captions, drawn, strict=True)
        return np.array([(1 + math.erf(model.score(text, image) / math.sqrt(2))) / 2 for text, image in pairs])

    return score


def _installed(name: str) -> bool:
    return importlib.util.find_spec(PACKAGES[name]) is not None


def _need(name: str, package: str) -> None:
    if not _installed(name):
        raise ScorerError(f"{name} is not installed; run: pip install {package}")
