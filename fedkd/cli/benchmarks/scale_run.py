"""One round of a small federation under Flower's simulation, and what it cost the server: seconds, bytes, memory."""

from __future__ import annotations

import json
import shutil
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

POOL = 1000  # private pictures: one a user, of the largest federation
ASKING = ("describe", "refresh", "synthesise", "finetune", "redistribute")
WORKING = ("distil", "publish")
CHEAP = (  # a user draws with one denoising step, an edge and the cloud train for two
    "data.source=folder",
    "data.partition=iid",
    "federation.rounds=1",
    "federation.quorum=1.0",
    "federation.phase_timeout_s=3000",
    "synthesis.method=image_to_image",
    "synthesis.strength=0.5",
    "synthesis.num_inference_steps=2",
    "synthesis.guidance_scale=1.0",
    "synthesis.min_distance=0.0",
    "synthesis.batch_size=100",
    "finetune.steps=2",
    "finetune.batch_size=4",
    "distillation.steps=2",
    "distillation.batch_size=4",
    "distillation.replay=0",
    "evaluation.classifier=",
    "evaluation.samples_per_concept=1",
    "evaluation.num_inference_steps=1",
)


@dataclass(frozen=True)
class Size:
    """A federation: `users` with one private picture each, `edges`, `pictures` drawn by a user."""

    users: int
    edges: int
    pictures: int

    @property
    def total(self) -> int:
        """Synthetic pictures of the round."""
        return self.users * self.pictures

    @property
    def name(self) -> str:
        """As a row of a table."""
        return f"N={self.users} B={self.edges} pictures={self.total}"


@dataclass(frozen=True)
class Cost:
    """What a round cost. `cpu_s` by phase is the processor time of the server's own thread; the rest is of all.

    `messages` were sent to nodes; `up`, `down` and `registry` are bytes; `peak_bytes` the most memory (RSS) of the
    process that ran the server, which in a simulation also carries Flower's messages; `disk_bytes` what it
    keeps.
    """

    size: Size
    cpu_s: dict[str, float]
    round_s: float
    wall_s: float
    messages: int
    up: int
    down: int
    registry: int
    peak_bytes: int
    disk_bytes: int

    @property
    def asking_s(self) -> float:
        """Processor seconds of sending messages and of checking and storing answers."""
        return sum(self.cpu_s.get(phase, 0.0) for phase in ASKING)

    @property
    def working_s(self) -> float:
        """Processor seconds of distilling and publishing."""
        return sum(self.cpu_s.get(phase, 0.0) for phase in WORKING)

    @property
    def cloud_s(self) -> float:
        """Processor seconds of the server in the round."""
        return self.asking_s + self.working_s


def private_pictures(folder: Path, count: int) -> Path:
    """A folder of `count` captioned digits, as a user has them."""
    from fedkd.data.digits import coloured_digits

    folder.mkdir(parents=True, exist_ok=True)
    rows = coloured_digits("private", 32, 0, copies=2)[:count]
    lines = []
    for index, row in enumerate(rows):
        name = f"{index:05d}.png"
        row["image"].save(folder / name)  # type: ignore[attr-defined]
        lines.append(json.dumps({"file_name": name, "caption": row["caption"]}))
    (folder / "metadata.jsonl").write_text("\n".join(lines) + "\n", encoding="utf-8")
    return folder


def measure(size: Size, folder: Path, overrides: list[str], say: Callable[[str], None]) -> Cost:
    """Run one round of `size` in `folder`, which is removed afterwards; ValueError when the run fails, and it stays."""
    from fedkd.cli.carry_out import registry_for
    from fedkd.cli.run_folder import anchored
    from fedkd.recipe import load_recipe, save_recipe
    from server.processes import last_error
    from server.simulation import simulation

    private_pictures(folder / "private", size.users)
    sizes = [f"federation.users={size.users}", f"federation.edges={size.edges}"]
    sizes += [f"synthesis.seeds_per_image={size.pictures}"]
    places = [f"data.path={folder / 'private'}", f"run.out={folder}", "run.name=scale"]
    recipe = anchored(load_recipe("quickstart", [*CHEAP, *sizes, *overrides, *places]))
    run, started = folder / "scale", time.monotonic()
    save_recipe(recipe, run / "recipe.yaml")
    registry = run / "registry"
    with registry_for(recipe, registry) as (url, token), simulation(recipe, run, url, token) as flower:
        flower.process.wait()
        status = flower.status()
    if status != "finished:completed":
        message, _ = last_error(run, run / "flower.log")
        raise ValueError(f"the federation of {size.name} ended as {status}: {message} (see {flower.log})")
    cost = cost_of(size, run, time.monotonic() - started)
    shutil.rmtree(folder, ignore_errors=True)
    say(f"{size.name}: {cost.cloud_s:.2f} s of cloud work, {cost.peak_bytes / 1e6:.0f} MB, {cost.wall_s:.0f} s in all")
    return cost


def cost_of(size: Size, run: Path, wall_s: float) -> Cost:
    """Read from a finished run what its round cost."""
    from server.state import RunState

    state, facts = RunState(run), {}
    for phase in (*ASKING, *WORKING):
        facts[phase] = (state.finished(1, phase) or {})["entry"]
    ledger: list[dict[str, Any]] = [line for entry in facts.values() for line in entry["ledger"]]
    cpu, begun, begins, ends, peak = {}, {}, 0.0, 0.0, 0
    for event in state.lines(run / "progress.jsonl"):
        if event.get("round") != 1:
            continue
        peak = max(peak, event["peak_bytes"])
        match event["event"]:
            case "phase_start":
                begun[event["phase"]] = event["cpu_s"]
            case "phase_end":
                cpu[event["phase"]] = event["cpu_s"] - begun[event["phase"]]
            case "round_start":
                begins = event["time"]
            case "round_end":
                ends = event["time"]
    kept = sum(path.stat().st_size for path in (run / "state").rglob("*") if path.is_file())
    moved = {way: sum(line[way] for line in ledger) for way in ("up", "down", "registry")}
    messages = sum(entry["asked"] for entry in facts.values())
    return Cost(size, cpu, ends - begins, wall_s, messages, **moved, peak_bytes=peak, disk_bytes=kept)
