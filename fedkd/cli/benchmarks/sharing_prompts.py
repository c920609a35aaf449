"""Prompts for the benchmark of sharing: paraphrases and attribute swaps of one caption, and a stream of requests."""

from __future__ import annotations

import random
from dataclasses import dataclass, replace

from fedkd.data.digits import COLOURS, DIGITS

# The first is the caption that the model was trained on.
TEMPLATES = (
    "a {ink} {digit} on a {background} background",
    "the {ink} {digit} on a {background} background",
    "{ink} {digit} on a {background} background",
    "a {ink} {digit} on {background}",
    "a {digit} in {ink} on a {background} background",
)
KNOWN = DIGITS[:7]  # what the shipped base model can draw
KINDS = ("paraphrase", "digit", "ink", "background", "ink and background", "all different")
ZIPF = 1.0  # exponent: the r-th most popular caption is asked for 1/r as often as the first
CATALOGUE = 60  # captions
PARAPHRASED, SWAPPED = 0.3, 0.2  # of the requests


@dataclass(frozen=True)
class Wanted:
    """What a prompt asks for, and in which words."""

    digit: str
    ink: str
    background: str
    words: int = 0

    @property
    def prompt(self) -> str:
        """The prompt."""
        return TEMPLATES[self.words].format(digit=self.digit, ink=self.ink, background=self.background)

    @property
    def slots(self) -> dict[str, str]:
        """What the reference classifier must read off its picture."""
        return {"digit": self.digit, "ink": self.ink, "background": self.background}


def any_wanted(rng: random.Random) -> Wanted:
    """A caption at random, ink and background differing."""
    ink, background = rng.sample(sorted(COLOURS), 2)
    return Wanted(rng.choice(KNOWN), ink, background)


def changed(wanted: Wanted, kind: str, rng: random.Random) -> Wanted:
    """Another prompt that differs from `wanted` in one of KINDS."""

    def other(values: list[str], *taken: str) -> str:
        return rng.choice([each for each in values if each not in taken])

    digits, colours = list(KNOWN), sorted(COLOURS)
    if kind == "paraphrase":
        return replace(wanted, words=rng.choice([each for each in range(len(TEMPLATES)) if each != wanted.words]))
    if kind in ("digit", "all different"):
        wanted = replace(wanted, digit=other(digits, wanted.digit))
    if kind in ("ink", "ink and background", "all different"):
        wanted = replace(wanted, ink=other(colours, wanted.ink, wanted.background))
    if kind in ("background", "ink and background", "all different"):
        wanted = replace(wanted, background=other(colours, wanted.ink, wanted.background))
    return wanted


def in_other_words(wanted: Wanted, share: float, rng: random.Random) -> Wanted:
    """`wanted`, with the probability `share` in words that may be any of TEMPLATES."""
    return replace(wanted, words=rng.randrange(len(TEMPLATES))) if rng.random() < share else wanted


def stream(count: int, seed: int) -> list[Wanted]:
    """`count` requests: captions by Zipf's law, some of them in other words, some with one attribute swapped."""
    rng = random.Random(f"stream {seed}")
    captions = [any_wanted(rng) for _ in range(CATALOGUE)]
    weights = [1 / (1 + rank) ** ZIPF for rank in range(CATALOGUE)]
    asked = []
    for wanted in rng.choices(captions, weights, k=count):
        dice = rng.random()
        if dice < PARAPHRASED:
            wanted = changed(wanted, "paraphrase", rng)
        elif dice < PARAPHRASED + SWAPPED:
            wanted = changed(wanted, rng.choice(("digit", "ink", "background")), rng)
        asked.append(wanted)
    return asked
