"""A user's set goes to the server and to the edge that the user named, and to nobody else."""

from __future__ import annotations

from clients.payload import unpack
from tests.server.conftest import Done


def test_a_set_is_sent_to_its_own_edge_and_to_nobody_else(undisturbed: Done) -> None:
    grid, members = undisturbed.federation.grid, undisturbed.federation.crew.members
    by_id = {member.id: member for member in members.values()}
    given: dict[str, set[str]] = {}
    for message in grid.sent:  # type: ignore[attr-defined]
        receiver = by_id[message.metadata.dst_node_id]
        _, files = unpack(message.content, max_bytes=2**30)
        for name in files:
            if name in members:
                given.setdefault(name, set()).add(receiver.name)
    users = {member.name: {member.edge} for member in members.values() if member.role == "user"}
    assert len(users) == 4 and given == users


def test_no_two_answers_of_users_are_the_same_set(undisturbed: Done) -> None:
    grid = undisturbed.federation.grid
    sets = []
    for message in grid.received:  # type: ignore[attr-defined]
        _, files = unpack(message.content, max_bytes=2**30)
        sets += [data for name, data in files.items() if name == "set"]
    assert len(sets) == 8 and len(set(sets)) == 8  # four users, two rounds
