"""What a run moved and what its users kept to themselves, as the rows of its report: bytes and privacy."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

from fedkd.evaluation.units import is_number

Report = Mapping[str, Any]
WAYS = ("up", "down", "registry", "edge")
NODES = 40  # a page names so many nodes in a table; report.json has all of them
COUNTS = ("private", "drawn", "redrawn", "refused", "kept", "skipped")
HEADINGS = {
    "distance_min": "nearest",
    "distance_mean": "mean",
    "private_distance_mean": "among private",
}


def phases_of(rounds: Iterable[Report]) -> list[tuple[Any, Report]]:
    """(round, phase) of all phases that were begun."""
    return [(item.get("round"), phase) for item in rounds for phase in item.get("phases") or []]


def bytes_by_phase(rounds: list[Report]) -> dict[str, dict[str, float | None]]:
    """{way: {phase: bytes of all rounds}} for a chart; {} when nothing was sent."""
    found: dict[str, dict[str, float]] = {way: {} for way in WAYS}
    for _, phase in phases_of(rounds):
        sent = dict(phase.get("bytes") or {})
        for way in ("registry", "edge"):
            sent[way] = sum(line.get(way) or 0 for line in phase.get("ledger") or [])
        if any(sent.values()):
            for way in WAYS:
                name = str(phase.get("name"))
                found[way][name] = found[way].get(name, 0) + (sent.get(way) or 0)
    return {way: dict(values) for way, values in found.items() if any(values.values())}


def bytes_by_node(rounds: list[Report]) -> tuple[list[dict[str, Any]], dict[str, Any] | None]:
    """A line a node, the largest first: bytes of all rounds each way and by phase; and the sum of those not shown."""
    found: dict[str, dict[str, Any]] = {}
    for _, phase in phases_of(rounds):
        for line in phase.get("ledger") or []:
            node = found.setdefault(str(line.get("node")), {"node": str(line.get("node")), **dict.fromkeys(WAYS, 0)})
            for way in WAYS:
                node[way] += line.get(way) or 0
    rows = sorted(found.values(), key=lambda node: (-sum(node[way] for way in WAYS), node["node"]))
    shown, rest = rows[:NODES], rows[NODES:]
    more = {"nodes": len(rest), **{way: sum(node[way] for node in rest) for way in WAYS}}
    return shown, more if rest else None


def bytes_by_entry(rounds: list[Report]) -> list[tuple[Any, str, Report]]:
    """(round, phase, {"node", and bytes by way}) for each node of each phase, at most NODES a phase."""
    return [
        (number, str(phase.get("name")), line)
        for number, phase in phases_of(rounds)
        for line in (phase.get("ledger") or [])[:NODES]
    ]


def audits(rounds: list[Report]) -> list[tuple[Any, Report]]:
    """(round, audit) of the users who answered."""
    return [(item.get("round"), user) for item in rounds for user in item.get("users") or []]


def audit_columns(users: list[tuple[Any, Report]]) -> list[tuple[str, str]]:
    """(key, heading) of the figures that any audit has, counts first, then distances in pixels, then in features."""
    present = {key for _, user in users for key, value in user.items() if is_number(value)}
    named = [key for key in (*COUNTS, *HEADINGS) if key in present]
    features = sorted(key for key in present if key.startswith("feature_"))
    columns = [(key, HEADINGS.get(key, key)) for key in named]
    columns += [(key, "features: " + feature_heading(key)) for key in features]
    return columns + ([("seconds", "time")] if "seconds" in present else [])


def feature_heading(key: str) -> str:
    """The heading of a distance in feature space."""
    plain = key.removeprefix("feature_")
    return HEADINGS.get(plain, plain.replace("_", " "))


def privacy_summary(users: list[tuple[Any, Report]]) -> dict[str, Any]:
    """All users together: pictures kept, share refused, nearest distance, mean distance over that among D_n."""

    def total(key: str) -> float:
        return sum(user[key] for _, user in users if is_number(user.get(key)))

    nearest = [user["distance_min"] for _, user in users if is_number(user.get("distance_min"))]
    ratios = [
        user["distance_mean"] / user["private_distance_mean"]
        for _, user in users
        if is_number(user.get("distance_mean")) and user.get("private_distance_mean")
    ]
    drawn = total("drawn")
    return {
        "users": len({user.get("name") for _, user in users}),
        "kept": total("kept"),
        "refused": total("refused"),
        "refused_share": total("refused") / drawn if drawn else None,
        "distance_min": min(nearest, default=None),
        "ratio": sum(ratios) / len(ratios) if ratios else None,
    }


def budgets(rounds: list[Report]) -> list[tuple[Any, str, Any, Any]]:
    """(round, edge, epsilon, delta) of the edges that trained with differential privacy."""
    return [
        (item.get("round"), str(edge.get("name")), edge["privacy"].get("epsilon"), edge["privacy"].get("delta"))
        for item in rounds
        for edge in item.get("edges") or []
        if isinstance(edge.get("privacy"), Mapping) and is_number(edge["privacy"].get("epsilon"))
    ]
