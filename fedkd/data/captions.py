"""Captions from a small grammar: a template, slots to fill it, and the slot that names the concept."""

from __future__ import annotations

import random

from fedkd.recipe import PromptsConfig


def prompts_for(prompts: PromptsConfig, concept: str, count: int, seed: int) -> list[str]:
    """`count` captions of one concept value, the other slots drawn at random from `seed`."""
    rng = random.Random(f"{seed}/{concept}")
    captions = []
    for _ in range(count):
        values = {slot: rng.choice(options) for slot, options in prompts.slots.items() if slot != prompts.concept}
        while values.get("ink") is not None and values.get("ink") == values.get("background"):
            values["background"] = rng.choice(prompts.slots["background"])
        captions.append(prompts.template.format(**values, **{prompts.concept: concept}))
    return captions


def slots_of(prompts: PromptsConfig, caption: str) -> dict[str, str] | None:
    """The slot values of a caption that follows the template; None when it does not."""
    words = caption.split()
    pattern = prompts.template.split()
    if len(words) != len(pattern):
        return None
    found: dict[str, str] = {}
    for word, part in zip(words, pattern, strict=True):
        if part.startswith("{") and part.endswith("}"):
            if word not in prompts.slots.get(part[1:-1], []):
                return None
            found[part[1:-1]] = word
        elif part != word:
            return None
    return found


def concept_of(prompts: PromptsConfig, caption: str) -> str | None:
    """The concept value that a caption names as a whole word; None when it names none."""
    words = set(caption.lower().replace(",", " ").replace(".", " ").split())
    return next((value for value in prompts.known + prompts.taught if value in words), None)
