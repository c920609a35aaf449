"""Names are tied to registered keys."""

from __future__ import annotations

import pytest

from server.members import described, key_of

FACTS = {"name": "edge-0", "role": "edge", "index": 0, "edge": "edge-0", "digest": "", "blobs": []}


def test_a_node_cannot_take_the_name_of_another() -> None:
    assert described(key_of(7), FACTS, "edge-0").name == "edge-0"
    assert described(key_of(7), FACTS).id == 7  # a simulation has no keys
    with pytest.raises(ValueError, match="its key is registered for 'ann'"):
        described(key_of(7), FACTS, "ann")
