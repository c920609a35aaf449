"""Profiles of machines: speeds, power, memory and links, as data with their sources, shipped or measured."""

from __future__ import annotations

import difflib
import json
import math
import os
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path
from typing import Any

from fedkd.planning.machines import COMPONENTS, Device, Link, PlanningError, Timings

FORMAT = 1
SHIPPED = Path(__file__).with_name("devices")
PLAIN = ("flops_per_s", "watts", "memory_bytes", "send_watts", "receive_watts")
KEYS = {"format", "name", "role", "peak", "held", "timings", "link", "sources", "machine", "note", *PLAIN}


@dataclass(frozen=True)
class Profile:
    """A machine as plans see it, with where each figure comes from.

    `link` is its connection towards the other side: a device's to its edge, an edge's to the cloud.
    `peak`: the speed is a data sheet's, which no model reaches. `machine` says on what a measured profile
    was measured.
    """

    device: Device
    link: Link | None = None
    role: str = "device"
    peak: bool = False
    sources: dict[str, str] = field(default_factory=dict)
    machine: dict[str, Any] = field(default_factory=dict)
    note: str = ""


def names() -> list[str]:
    """The profiles that ship with the package."""
    return sorted(path.stem for path in SHIPPED.glob("*.json"))


def load_profile(source: str) -> Profile:
    """A shipped profile by its name, or one from a JSON file; PlanningError says what is wrong with it."""
    path = SHIPPED / f"{source}.json" if source in names() else Path(source).expanduser()
    if not path.is_file():
        near = difflib.get_close_matches(source, names(), 1, 0.4)
        hint = f"did you mean {near[0]}?" if near else "measure one with `fedkd plan profile`"
        raise PlanningError(f"no profile '{source}'; give a JSON file or one of {', '.join(names())}; {hint}")
    try:
        return parsed(json.loads(path.read_text("utf-8")))
    except PlanningError as error:
        raise PlanningError(f"profile {source}: {error}") from error
    except (OSError, ValueError) as error:
        raise PlanningError(f"profile {source} cannot be read: {error}; write it as JSON") from error


def parsed(facts: Any) -> Profile:
    """A profile from what its JSON says; PlanningError names a key or value that cannot be."""
    if not isinstance(facts, dict):
        raise PlanningError("a profile is a JSON object with name, flops_per_s and watts")
    for key in sorted(set(facts) - KEYS):
        near = difflib.get_close_matches(key, KEYS, 1, 0.4)
        raise PlanningError(f"'{key}' is not known{f'; did you mean {near[0]}?' if near else ''}")
    if facts.get("format", FORMAT) != FORMAT:
        raise PlanningError(f"format={facts['format']!r} is not known; this version reads {FORMAT}")
    for key in ("name", "flops_per_s", "watts"):
        if key not in facts:
            raise PlanningError(f"'{key}' is missing; give it")
    numbers = {key: _number(key, facts[key]) for key in PLAIN if key in facts}
    timings, link, held = facts.get("timings"), facts.get("link"), facts.get("held", sorted(COMPONENTS))
    if not isinstance(held, list) or not all(isinstance(each, str) for each in held):
        raise PlanningError(f"held={held!r} must be a list of component names")
    return Profile(
        device=Device(
            str(facts["name"]), held=frozenset(held), timings=None if timings is None else _timings(timings), **numbers
        ),
        link=None if link is None else Link(**_exactly("link", link, ("bandwidth_bps", "distance_m"))),
        role=_one_of("role", facts.get("role", "device"), ("device", "edge")),
        peak=bool(facts.get("peak", False)),
        sources=dict(facts.get("sources", {})),
        machine=dict(facts.get("machine", {})),
        note=str(facts.get("note", "")),
    )


def facts_of(profile: Profile) -> dict[str, Any]:
    """The profile as its JSON holds it; what is not known is left out."""
    device, link = profile.device, profile.link
    found: dict[str, Any] = {"format": FORMAT, "name": device.name, "role": profile.role}
    found |= {key: getattr(device, key) for key in PLAIN if not math.isinf(getattr(device, key))}
    found |= {"peak": profile.peak, "held": sorted(device.held)}
    found |= {"timings": asdict(device.timings)} if device.timings is not None else {}
    found |= {"link": asdict(link)} if link is not None else {}
    rest = {"sources": profile.sources, "machine": profile.machine, "note": profile.note}
    return found | {key: value for key, value in rest.items() if value}


def save_profile(profile: Profile, path: Path) -> None:
    """Write the profile as JSON, whole or not at all."""
    part = path.with_name(f"{path.name}.part")
    part.write_text(json.dumps(facts_of(profile), indent=2) + "\n", "utf-8")
    os.replace(part, path)


def _timings(facts: Any) -> Timings:
    model = facts.get("model", "") if isinstance(facts, dict) else ""
    rest = {key: value for key, value in facts.items() if key != "model"} if isinstance(facts, dict) else facts
    wanted = tuple(each.name for each in fields(Timings) if each.name != "model")
    return Timings(model=str(model), **_exactly("timings", rest, wanted, optional=("message_s",)))


def _exactly(name: str, facts: Any, wanted: tuple[str, ...], optional: tuple[str, ...] = ()) -> dict[str, float]:
    given = set(facts) if isinstance(facts, dict) else set()
    if not isinstance(facts, dict) or not set(wanted) - set(optional) <= given <= set(wanted):
        raise PlanningError(f"{name}={facts!r} must have {', '.join(wanted)}")
    return {key: _number(f"{name}.{key}", value) for key, value in facts.items()}


def _number(name: str, value: Any) -> float:
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise PlanningError(f"{name}={value!r} is not a number")
    return float(value)


def _one_of(name: str, value: Any, known: tuple[str, ...]) -> str:
    if value not in known:
        raise PlanningError(f"{name}={value!r} is not known; give {' or '.join(known)}")
    return str(value)
