"""A cluster of edges and what arrives there, drawn by seed: LAD-TS's setting (Tables III-IV), and others."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, fields

import numpy as np

from fedkd.planning.system import PlanningError

Array = np.ndarray

TRAINING_SEEDS = range(0, 900_000)  # arrivals to train and to tune on
HELD_OUT_SEEDS = range(900_000, 900_030)  # arrivals to report on, and for nothing else
VARIANTS = {"fixed": "work depends on the task's index alone, always and everywhere", "random": "work drawn per task"}
SIZES = {"uniform": "density x steps, both uniform", "heavy": "the same mean, bounded Pareto: few tasks hold much work"}
ARRIVALS = {"uniform": "1..tasks a slot", "bursty": "the same mean in bursts", "diurnal": "the same mean along a sine"}
BURST, CALM, BURST_SHARE, BURST_SLOTS = 2.2, 0.6, 0.25, 5.0  # 0.25 x 2.2 + 0.75 x 0.6 = 1
SWING = 0.8  # of the sine
CLUSTER_SEED = 190  # a cluster as loaded as the reference figures were measured at: 1.24 (fixed), 1.27 (random)
PARETO_SHAPE, PARETO_SPAN = 1.3, 300.0  # exponent; largest over smallest


@dataclass(frozen=True)
class ClusterSetting:
    """B edges, each a base station where 1..`tasks` tasks arrive a slot; work in Gcycles, speed in Gcycle/s.

    `slots` counts the last one, in which nothing arrives any more: `steps_run` is `slots - 1`. `density` is Gcycles
    a step and `steps` the z of Table III; the work of a task is their product. `cluster_seed` draws what the episodes
    share: capacities, the fixed variant's table, which edge holds which model. `failure` is the chance a slot that
    a running edge stops, for `repair_slots` slots on average; its queue stays. Of `models` models an edge holds
    `held`; where one is missing the edge first fetches it, `miss_s` each time. Raises PlanningError for what
    cannot be.
    """

    edges: int = 20
    slots: int = 60
    slot_s: float = 1.0
    tasks: int = 50
    data_bits: tuple[float, float] = (2e6, 5e6)
    result_bits: tuple[float, float] = (0.6e6, 1e6)
    rate_bps: tuple[float, float] = (400e6, 500e6)
    capacity: tuple[int, int] = (10, 50)
    density: tuple[float, float] = (0.1024, 0.3072)
    steps: tuple[int, int] = (1, 14)
    variant: str = "fixed"
    sizes: str = "uniform"
    arrivals: str = "uniform"
    failure: float = 0.0
    repair_slots: float = 10.0
    models: int = 1
    held: int = 1
    miss_s: float = 0.0
    cluster_seed: int = CLUSTER_SEED

    def __post_init__(self) -> None:
        for name, least in (("edges", 1), ("slots", 2), ("tasks", 1), ("models", 1), ("held", 0), ("cluster_seed", 0)):
            value = getattr(self, name)
            if isinstance(value, bool) or not isinstance(value, int) or value < least:
                raise PlanningError(f"{name}={value!r} must be a whole number, at least {least}")
        for each in fields(self):
            value = getattr(self, each.name)
            if isinstance(value, tuple) and not (len(value) == 2 and 0 < value[0] <= value[1] < math.inf):
                raise PlanningError(f"{each.name}={value} must be the least and the most of it, both positive")
        for name in ("capacity", "steps"):
            if any(value != int(value) for value in getattr(self, name)):
                raise PlanningError(f"{name}={getattr(self, name)} must be whole numbers")
        for name, known in (("variant", VARIANTS), ("sizes", SIZES), ("arrivals", ARRIVALS)):
            if getattr(self, name) not in known:
                raise PlanningError(f"{name}={getattr(self, name)!r} is not known; give {', '.join(known)}")
        if not (0 < self.slot_s < math.inf and 1 <= self.repair_slots < math.inf and 0 <= self.miss_s < math.inf):
            raise PlanningError("slot_s must be positive, repair_slots at least 1, miss_s not negative, all finite")
        if not 0 <= self.failure < 1:
            raise PlanningError(f"failure={self.failure} is no chance a slot; give 0 up to (not with) 1")
        if self.held > self.models:
            raise PlanningError(f"held={self.held} is more than there is; give at most models={self.models}")

    @property
    def steps_run(self) -> int:
        """T, the slots in which tasks arrive."""
        return self.slots - 1

    @property
    def most_tasks(self) -> int:
        """N, the width of the arrays: the most tasks that one base station can get in a slot."""
        return math.ceil(self.tasks * {"uniform": 1.0, "bursty": BURST, "diurnal": 1 + SWING}[self.arrivals])

    def cluster(self) -> Cluster:
        """What all episodes share."""
        rng = np.random.default_rng([self.cluster_seed, 7])
        low, high = self.capacity
        speed = low + np.floor(rng.random(self.edges) * (high - low + 1))
        cached = rng.random((self.edges, self.models)).argsort(axis=1).argsort(axis=1) < self.held
        orphans = np.flatnonzero(~cached.any(axis=0)) if self.held else np.array([], int)
        cached[orphans % self.edges, orphans] = True
        return Cluster(self, speed, self.work(np.random.default_rng([self.cluster_seed, 8]), self.most_tasks), cached)

    def work(self, rng: np.random.Generator, count: int) -> Array:
        """Work (count,) in Gcycles of tasks as `sizes` has them."""
        if self.sizes == "heavy":
            shape, span = PARETO_SHAPE, PARETO_SPAN
            least = self.mean_work * (shape - 1) / shape * (1 - span**-shape) / (1 - span ** (1 - shape))
            return least * (1 - rng.random(count) * (1 - span**-shape)) ** (-1 / shape)
        low, high = self.steps
        both = rng.random((count, 2))
        density = self.density[0] + both[:, 0] * (self.density[1] - self.density[0])
        return density * (low + np.floor(both[:, 1] * (high - low + 1)))

    @property
    def mean_work(self) -> float:
        """Gcycles of a task, in the mean over all that can be drawn."""
        return (self.density[0] + self.density[1]) / 2 * (self.steps[0] + self.steps[1]) / 2


@dataclass(frozen=True)
class Cluster:
    """`speed` (B,) in Gcycle/s; `table` (N,): the fixed variant's work in Gcycles; `cached` (B, models)."""

    setting: ClusterSetting
    speed: Array
    table: Array
    cached: Array

    @property
    def load(self) -> float:
        """Work that arrives over work that can be done; above 1 delays grow with the horizon."""
        setting = self.setting
        chance = np.arange(setting.tasks, 0, -1) / setting.tasks  # that task n arrives
        fixed = setting.variant == "fixed" and setting.arrivals == "uniform"
        each = float(chance @ self.table[: setting.tasks]) if fixed else float(chance.sum()) * setting.mean_work
        return each * setting.edges / (float(self.speed.sum()) * setting.slot_s)


@dataclass(frozen=True)
class Arrivals:
    """What arrives in S episodes of T slots at B base stations, at most N a slot.

    `mask`, `work` (Gcycles), `data_bits`, `transfer_s` (data and result on their way to another edge and back)
    and `model` are (S, T, B, N), and 0 where `mask` is False; `speed` (S, T, B) is 0 while an edge is down.
    """

    cluster: Cluster
    seeds: tuple[int, ...]
    mask: Array
    work: Array
    data_bits: Array
    transfer_s: Array
    model: Array
    speed: Array


def draw(setting: ClusterSetting, seeds: Sequence[int]) -> Arrivals:
    """The arrivals of one episode a seed; the same seed and setting give the same arrivals.

    Raises PlanningError for no seeds, or a negative one.
    """
    seeds = tuple(int(seed) for seed in seeds)
    if not seeds or min(seeds) < 0:
        raise PlanningError(f"seeds={seeds} must be at least one whole number, none of them negative")
    cluster = setting.cluster()
    episodes = [_episode(cluster, np.random.default_rng([seed, 9])) for seed in seeds]
    return Arrivals(cluster, seeds, *(np.stack(columns) for columns in zip(*episodes, strict=True)))


def _episode(cluster: Cluster, rng: np.random.Generator) -> tuple[Array, ...]:
    """One seed's mask, work, data_bits, transfer_s, model (T, B, N) and speed (T, B)."""
    setting = cluster.setting
    shape = (setting.steps_run, setting.edges)
    counts = np.ceil(rng.integers(1, setting.tasks + 1, shape) * _tide(setting, rng)[:, None])
    mask = np.arange(setting.most_tasks) < counts[..., None]
    count = int(mask.sum())

    def spread(values: Array) -> Array:
        found = np.zeros(mask.shape, values.dtype)
        found[mask] = values
        return found

    def uniform(bounds: tuple[float, float]) -> Array:
        return bounds[0] + rng.random(count, np.float32) * (bounds[1] - bounds[0])

    data, result = uniform(setting.data_bits), uniform(setting.result_bits)
    transfer = data / uniform(setting.rate_bps) + result / uniform(setting.rate_bps)
    fixed = setting.variant == "fixed"
    work = np.where(mask, cluster.table, 0.0) if fixed else spread(setting.work(rng, count))
    model = np.zeros(mask.shape, np.int16)
    if setting.models > 1:
        popularity = np.cumsum(1 / np.arange(1, setting.models + 1))  # Zipf
        model = spread(np.searchsorted(popularity / popularity[-1], rng.random(count)).astype(np.int16))
    return mask, work, spread(data), spread(transfer), model, cluster.speed * _running(setting, rng)


def _tide(setting: ClusterSetting, rng: np.random.Generator) -> Array:
    """How much of the usual arrives in each slot (T,), 1 in the mean."""
    slots = setting.steps_run
    if setting.arrivals == "diurnal":
        return 1 + SWING * np.sin(2 * np.pi * np.arange(slots) / slots)
    if setting.arrivals == "bursty":
        start = BURST_SHARE / (1 - BURST_SHARE) / BURST_SLOTS
        bursting = _two_states(rng, (slots, 1), BURST_SHARE, start, 1 / BURST_SLOTS)[:, 0]
        return np.where(bursting, BURST, CALM)
    return np.ones(slots)


def _running(setting: ClusterSetting, rng: np.random.Generator) -> Array:
    """Which edge runs in which slot (T, B)."""
    shape = (setting.steps_run, setting.edges)
    if setting.failure == 0:
        return np.ones(shape, bool)
    return ~_two_states(rng, shape, 0.0, setting.failure, 1 / setting.repair_slots)


def _two_states(rng: np.random.Generator, shape: tuple[int, int], first: float, start: float, end: float) -> Array:
    """Markov chains (T, chains): on with chance `first` at once, then switched on with `start`, off with `end`."""
    chance = rng.random(shape)
    found = np.zeros(shape, bool)
    found[0] = chance[0] < first
    for t in range(1, shape[0]):
        found[t] = np.where(found[t - 1], chance[t] >= end, chance[t] < start)
    return found
