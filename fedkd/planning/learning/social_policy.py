"""A learned scheduler that serves any number of edges: every edge is scored by the same small network."""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from fedkd.planning.dispatch_situation import Situation
from fedkd.planning.system import PlanningError

Array = np.ndarray
KIND = "fedkd social dispatch policy"
FEATURES = 13
HIDDEN = 16
GRID = 8  # sizes that are scored; between them logits are straight lines in log size
GOLDEN = 0.6180339887498949
SHAPES = {
    "w1": (FEATURES, HIDDEN),
    "b1": (HIDDEN,),
    "w2": (HIDDEN, HIDDEN),
    "b2": (HIDDEN,),
    "w3": (HIDDEN, 1),
    "rule": (5,),
}


RULE = (0.5, 0.0, 2.0, 3.0, 2.7)  # log T0, its slope with the load, log K, its slope, log x0


def fresh(seed: int = 0) -> dict[str, Array]:
    """Weights of a policy that has learned nothing yet: its network adds 0 to `rule_logits`."""
    rng = np.random.default_rng(seed)
    found = {}
    for name, shape in SHAPES.items():
        bound = 1 / np.sqrt(shape[0])
        found[name] = rng.uniform(-bound, bound, shape).astype(np.float32)
    return found | {"w3": np.zeros(SHAPES["w3"], np.float32), "rule": np.array(RULE, np.float32)}


def rule_logits(rule: Any, wait: Any, takes: Any, log_speed: Any, load: Any, exp: Callable[[Any], Any]) -> Any:
    """Logits (R, W, B) that the network corrects: log f - (x + w/f (1 + K exp(-x/x0))) / T0, in arrays or tensors.

    The delay of a task and what it imposes on those who come after: K tasks at an empty edge and fewer the longer its
    backlog x is, because those who have little work avoid it. T0 and K depend on the load; `load` is
    (R, 1, 1) as `known_load` has it, `wait` and `log_speed` (R, 1, B), `takes` = w/f (R, W, B).
    """
    crowd = exp(rule[2] + rule[3] * load - wait * exp(-rule[4]))
    return log_speed - (wait + takes * (1 + crowd)) * exp(-(rule[0] + rule[1] * load))


def known_load(load: Array) -> Array:
    """Measured loads less 1, at most 0.5; 0 where nothing was measured."""
    return np.minimum(np.nan_to_num(load, nan=1.0), 1.5) - 1


def features(queue: Array, speed: Array, work: Array, load: Array, period_s: float) -> tuple[Array, Array, Array]:
    """(features (R, W, B, FEATURES), x (R, 1, B), w/f (R, W, B)) of tasks of `work` (R, W) at every edge.

    `queue` and `speed` (R, B), `load` (R,), not a number where nothing was measured. Times count in periods of
    the reports. An edge is described by itself and by what all edges have in common, so that their order and number
    do not matter.
    """
    up = speed > 0
    up = up | ~up.any(1, keepdims=True)
    pace = np.where(speed > 0, speed, 1.0)
    share = np.where(up, pace, 0.0)
    usual = share.sum(1) / up.sum(1)
    share = share / share.sum(1, keepdims=True)
    wait = np.where(up, queue / pace, 0.0) / period_s
    mean = (share * wait).sum(1)
    shorter = ((wait[:, None, :] < wait[:, :, None] - 1e-9) * share[:, None, :]).sum(2)
    edge = [
        np.log1p(wait),
        np.log(pace / usual[:, None]),
        np.tanh(wait - mean[:, None]),
        np.tanh((wait - mean[:, None]) / 8),
        np.exp(-wait),
        shorter,
    ]
    everywhere = [
        np.log1p(mean),
        np.log1p(np.where(up, wait, np.inf).min(1, where=up, initial=1e6)),
        np.log1p(wait.max(1)),
        known_load(load),
    ]
    shape = (len(queue), work.shape[1], queue.shape[1])
    takes = work[:, :, None] / pace[:, None, :] / period_s
    size = np.log(np.maximum(work / usual[:, None] / period_s, 1e-6)) / 2 + 1.5  # -0.5 at 1/50, 1.5 at a whole period
    columns = [np.broadcast_to(each[:, None, :], shape) for each in edge]
    columns += [np.broadcast_to(each[:, None, None], shape) for each in everywhere]
    columns += [np.broadcast_to(size[..., None], shape), np.log1p(takes), size[..., None] * edge[2][:, None, :]]
    return np.stack(columns, axis=-1).astype(np.float32), wait[:, None, :], takes


@dataclass(frozen=True)
class SocialPolicy:
    """Weights by name as in `SHAPES`; calling it with a `Situation` gives an edge (R, N) for every task."""

    weights: dict[str, Array]

    def __call__(self, now: Situation) -> Array:
        return spread(self.chances(now), now)

    def logits(self, queue: Array, speed: Array, work: Array, load: Array, period_s: float) -> Array:
        """(R, W, B) for tasks of `work` (R, W)."""
        found, wait, takes = features(queue, speed, work, load, period_s)
        w = self.weights
        hidden = np.maximum(found.reshape(-1, FEATURES) @ w["w1"] + w["b1"], 0)
        hidden = np.maximum(hidden @ w["w2"] + w["b2"], 0)
        log_speed = np.log(np.maximum(speed, 1e-9))[:, None, :]
        start = rule_logits(w["rule"], wait, takes, log_speed, known_load(load)[:, None, None], np.exp)
        return (hidden @ w["w3"]).reshape(takes.shape) + start

    def chances(self, now: Situation) -> Array:
        """The policy: how likely each edge (R, N, B) is for each task."""
        rows = len(now.mask)
        load = np.broadcast_to(np.asarray(now.load, float), rows)
        work = np.where(now.mask, now.work, np.nan)
        if now.mask.shape[1] <= GRID:
            sizes, low, part = np.where(now.mask, np.maximum(now.work, 1e-12), 1.0), None, None
        else:
            least, most = np.log(max(np.nanmin(work), 1e-12)), np.log(max(np.nanmax(work), 1e-12))
            place = (np.log(np.maximum(np.nan_to_num(work, nan=1.0), 1e-12)) - least) / max(most - least, 1e-9)
            place = np.clip(place, 0, 1) * (GRID - 1)
            low = np.minimum(place.astype(int), GRID - 2)
            part = (place - low)[..., None]
            sizes = np.broadcast_to(np.exp(np.linspace(least, most, GRID)), (rows, GRID))
        found = self.logits(now.queue, now.speed, sizes, load, now.period_s)
        if low is not None:
            at = np.take_along_axis(found, low[..., None], axis=1)
            found = at + part * (np.take_along_axis(found, low[..., None] + 1, axis=1) - at)
        extra = now.own_s() - now.work[..., None] * now.pace_s[:, None, :]  # the way there, a missing model
        rule = self.weights["rule"]
        rate = np.exp(-(rule[0] + rule[1] * known_load(load)))
        found = found - extra / now.period_s * rate[:, None, None]
        found = np.where(now.up[:, None, :], found, -np.inf)
        found = np.exp(found - found.max(2, keepdims=True))
        return found / found.sum(2, keepdims=True)

    def export(self, path: Path) -> None:
        """PATH.safetensors with the weights and PATH.json, which says what they are; whole or not at all."""
        from safetensors.numpy import save_file

        path.parent.mkdir(parents=True, exist_ok=True)
        part = path.with_suffix(".safetensors.part")
        save_file({name: np.ascontiguousarray(each) for name, each in self.weights.items()}, part)
        os.replace(part, path.with_suffix(".safetensors"))
        part = path.with_suffix(".json.part")
        part.write_text(json.dumps({"kind": KIND, "features": FEATURES, "hidden": HIDDEN}, indent=1), encoding="utf-8")
        os.replace(part, path.with_suffix(".json"))


def spread(chances: Array, now: Situation) -> Array:
    """An edge (R, N) for every task by its chances (R, N, B), spread evenly over tasks of like size.

    Tasks in order of size take the numbers phase + k x golden ratio modulo 1, so that a dispatcher's tasks fall on
    edges in proportion to their chances with less chance than independent draws have.
    """
    rank = np.where(now.mask, now.work, np.inf).argsort(axis=1, kind="stable").argsort(axis=1)
    spot = (now.rng.random((len(chances), 1)) + rank * GOLDEN) % 1.0
    bounds = np.cumsum(chances, axis=2)
    return np.minimum((spot[..., None] * bounds[..., -1:] >= bounds).sum(axis=2), chances.shape[2] - 1)


def load(path: Path) -> SocialPolicy:
    """The policy that `export` wrote to PATH (with or without a suffix). Raises PlanningError for anything else."""
    from safetensors import SafetensorError
    from safetensors.numpy import load_file

    card, weights = path.with_suffix(".json"), path.with_suffix(".safetensors")
    try:
        facts = json.loads(card.read_text(encoding="utf-8"))
        found = load_file(weights)
    except (OSError, ValueError, SafetensorError) as error:
        raise PlanningError(f"{path} is no exported policy ({error}); give the path that train wrote") from error
    if not isinstance(facts, dict) or facts.get("kind") != KIND:
        raise PlanningError(f"{card} does not describe a {KIND}; give the path that train wrote")
    shapes = {name: each.shape for name, each in found.items()}
    if shapes != SHAPES:
        raise PlanningError(f"{weights} holds {shapes}, not {SHAPES}; train the policy again")
    if not all(np.isfinite(each).all() for each in found.values()):
        raise PlanningError(f"{weights} holds numbers that are not finite; train the policy again")
    return SocialPolicy(found)


def offer(path: Path) -> str:
    """Put the policy at PATH among the schedulers of `fedkd.planning.dispatch`, and say its name there."""
    from fedkd.planning.dispatch import SCHEDULERS

    name = f"learned:{path.with_suffix('').name}"
    SCHEDULERS[name] = load(path)
    return name
