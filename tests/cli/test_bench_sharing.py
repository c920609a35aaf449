"""The benchmark of sharing asks for what it says: prompts that differ in one way, and streams that repeat by seed."""

from __future__ import annotations

import random
from collections import Counter

import pytest

from fedkd.cli.benchmarks.request import Request
from fedkd.cli.benchmarks.sharing import SIZES, sizes
from fedkd.cli.benchmarks.sharing_prompts import KINDS, any_wanted, changed, stream


@pytest.mark.parametrize("kind", KINDS)
def test_a_changed_prompt_differs_in_its_kind_alone(kind: str) -> None:
    rng = random.Random(0)
    for _ in range(50):
        before = any_wanted(rng)
        after = changed(before, kind, rng)
        differs = {name for name in before.slots if before.slots[name] != after.slots[name]}
        expected = {
            "paraphrase": set(),
            "all different": set(before.slots),
            "ink and background": {"ink", "background"},
        }
        assert differs == expected.get(kind, {kind}) and after.prompt != before.prompt
        assert after.ink != after.background


def test_a_stream_is_its_seed_and_some_captions_are_asked_for_often() -> None:
    asked = stream(400, 3)
    assert asked == stream(400, 3) and asked != stream(400, 4)
    counts = Counter(wanted.prompt for wanted in asked).most_common()
    assert counts[0][1] > 20 and counts[-1][1] == 1
    assert 0.2 < sum(wanted.words > 0 for wanted in asked) / 400 < 0.4


def test_sizes_may_be_changed_and_what_is_none_is_refused() -> None:
    assert sizes(Request("sharing", overrides=["pairs=3"])) == SIZES | {"pairs": 3}
    for wrong in ("pears=3", "pairs=0", "pairs=many", "pairs"):
        with pytest.raises(ValueError, match="is no size"):
            sizes(Request("sharing", overrides=[wrong]))
