"""Who takes part: nodes as they described themselves, and how they changed from round to round."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from typing import Any

from fedkd.checkpoints.manifest import check_name
from server.exchange import Exchange, first_line


@dataclass
class Member:
    """A node as it described itself; `digest` is that of the checkpoint it has."""

    id: int
    name: str
    role: str
    index: int
    edge: str
    digest: str
    blobs: set[str]

    def facts(self) -> dict[str, str]:
        """What the run's state keeps of it."""
        return {"name": self.name, "role": self.role, "edge": self.edge, "digest": self.digest}


def key_of(node: int) -> str:
    """What a node is called before it has said its name."""
    return f"{node:020d}"


def described(key: str, facts: dict[str, Any], registered: str = "") -> Member:
    """The member that an answer to `describe` describes; ValueError when it is malformed.

    A node whose key was `registered` under a name has that name and no other: nobody is sent what is meant for
    another by calling itself so.
    """
    try:
        name, role, edge = check_name(str(facts["name"])), str(facts["role"]), str(facts["edge"])
        blobs = {str(digest) for digest in facts["blobs"]}
        member = Member(int(key), name, role, int(facts["index"]), edge, str(facts["digest"]), blobs)
    except (KeyError, TypeError, ValueError) as error:
        raise ValueError(f"its description is malformed: {first_line(error)}") from error
    if registered and name != registered:
        raise ValueError(f"it calls itself '{name}', and its key is registered for '{registered}'; give it that name")
    return member


def by_name(
    result: Exchange, before: Iterable[Member], registered: Mapping[str, str]
) -> tuple[dict[str, Member], Exchange]:
    """Members by name, and the exchange with names in place of node ids.

    Of two nodes with one name the one with the smaller id stays. A node that did not answer has the name that its key
    was `registered` for, or that it had `before`, if it had one.
    """
    members: dict[str, Member] = {}
    left_out, names = dict(result.left_out), {key_of(member.id): member.name for member in before}
    names |= {key: name for key, name in registered.items() if name}
    for key, member in sorted(result.answers.items()):
        if member.name in members:
            left_out[key] = f"another node is called '{member.name}' too; give it a name of its own"
            names.pop(key, None)
        else:
            members[member.name] = member
            names[key] = member.name

    def named(values: dict[str, Any]) -> dict[str, Any]:
        return {names.get(key, key): value for key, value in values.items()}

    renamed = replace(
        result,
        answers=members,
        left_out=named(left_out),
        duplicates=[names.get(key, key) for key in result.duplicates],
        refused={names.get(key, key) for key in result.refused},
        up=named(result.up),
        down=named(result.down),
    )
    return members, renamed
